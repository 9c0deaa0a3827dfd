//! One configuration after another: what a running process cannot take over, and what is different.

use std::collections::{BTreeMap, BTreeSet};

use super::fault::{Notice, NoticeKind};
use super::{Config, Key};

/// Names that a line of the log lists before it says how many more there are.
const LISTED: usize = 8;

impl Config {
    /// Keeps what cannot change while the process runs as `running` has it, with a notice for each
    /// key that was to change: the sockets, the number of threads, and whether clients speak TLS.
    /// To be asked after command-line arguments have changed this one as they did `running`.
    pub fn keep_fixed(&mut self, running: &Config) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut kept = |key: &str, now: String, wanted: String| {
            let text = format!(
                "cannot change while the gateway runs: {now} stays in force; restart to have {wanted}"
            );
            let (kind, key) = (NoticeKind::Restart, key.to_owned());
            notices.push(Notice { kind, key, line: None, text });
        };
        let (own, old) = (&mut self.server, &running.server);
        if own.listen != old.listen {
            kept("server.listen", format!("{:?}", old.listen), format!("{:?}", own.listen));
            own.listen.clone_from(&old.listen);
        }
        if own.workers != old.workers {
            kept("server.workers", old.workers.to_string(), own.workers.to_string());
            own.workers = old.workers;
        }
        if own.tls.is_some() != old.tls.is_some() {
            let word = |on: bool| (if on { "TLS" } else { "cleartext" }).to_owned();
            kept("server.tls", word(old.tls.is_some()), word(own.tls.is_some()));
            own.tls.clone_from(&old.tls);
        }
        if self.admin.listen != running.admin.listen {
            let (now, wanted) = (running.admin.listen, self.admin.listen);
            kept("admin.listen", now.to_string(), wanted.to_string());
            self.admin.listen = now;
        }
        notices
    }

    /// What is different from `before`, in a few words for the log, without any value; empty if
    /// nothing is. What files hold is not looked at, other than credentials.
    pub fn changes_since(&self, before: &Config) -> String {
        let mut said = Vec::new();
        for (section, differs) in [
            ("[server]", self.server != before.server),
            ("[admin]", self.admin != before.admin),
            ("[stream]", self.stream != before.stream),
            ("[limits]", self.limits != before.limits),
            ("[cors]", self.cors != before.cors),
            ("[log]", self.log != before.log),
            ("[usage]", self.usage != before.usage),
        ] {
            if differs {
                said.push(section.to_owned());
            }
        }
        let tenants = |config: &Config| {
            let named = config.tenants.iter().map(|tenant| (tenant.name.clone(), tenant.clone()));
            named.collect()
        };
        compare(&mut said, "tenant", &tenants(before), &tenants(self));
        compare_keys(&mut said, before, self);
        let upstreams = |config: &Config| {
            let named = config.upstreams.iter().map(|up| (up.name.clone(), up.clone()));
            named.collect()
        };
        compare(&mut said, "upstream", &upstreams(before), &upstreams(self));
        let routes = |config: &Config| {
            // An upstream's index says nothing by itself: another order of theirs is no change.
            let named = config.routes.iter().map(|route| {
                let name = |index: &usize| config.upstreams[*index].name.clone();
                let names: Vec<_> = route.upstreams.iter().map(name).collect();
                let rest = super::Route { upstreams: Vec::new(), ..route.clone() };
                (route.path.clone(), (names, rest))
            });
            named.collect()
        };
        compare(&mut said, "route", &routes(before), &routes(self));
        said.join("; ")
    }
}

/// Says which names were added, removed and changed.
fn compare<T: PartialEq>(
    said: &mut Vec<String>,
    what: &str,
    before: &BTreeMap<String, T>,
    now: &BTreeMap<String, T>,
) {
    let names = |all: &BTreeMap<String, T>, wanted: &dyn Fn(&str, &T) -> bool| -> Vec<String> {
        let wanted = all.iter().filter(|(name, value)| wanted(name, value));
        wanted.map(|(name, _)| name.clone()).collect()
    };
    for (how, names) in [
        ("added", names(now, &|name, _| !before.contains_key(name))),
        ("removed", names(before, &|name, _| !now.contains_key(name))),
        ("changed", names(now, &|name, it| before.get(name).is_some_and(|old| old != it))),
    ] {
        if names.is_empty() {
            continue;
        }
        let more = names.len().saturating_sub(LISTED);
        let mut text = format!("{what} {how}: {}", names[..names.len() - more].join(", "));
        if more > 0 {
            text += &format!(" and {more} more");
        }
        said.push(text);
    }
}

/// Says how many keys are taken from now on, and how many no more.
fn compare_keys(said: &mut Vec<String>, before: &Config, now: &Config) {
    fn taken(config: &Config) -> BTreeSet<&[u8; 32]> {
        let open = config.tenants.iter().filter(|tenant| !tenant.disabled);
        let keys = open.flat_map(|tenant| tenant.keys.iter().filter(|key| !key.disabled));
        keys.map(|Key { sha256, .. }| sha256).collect()
    }
    let (before, now) = (taken(before), taken(now));
    for (how, count) in
        [("added", now.difference(&before).count()), ("revoked", before.difference(&now).count())]
    {
        if count > 0 {
            said.push(format!("keys {how}: {count}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn config(text: &str) -> Config {
        parse(text, "test.toml").unwrap_or_else(|faults| panic!("{faults}")).config
    }

    const UPSTREAM: &str = "[[upstream]]\nurls = [\"http://a\"]\n";

    #[test]
    fn what_cannot_change_is_kept_and_named() {
        let running = config(UPSTREAM);
        let wanted = format!(
            "[server]\nlisten = [\"127.0.0.1:1\"]\nworkers = 3\nh2_max_streams = 7\n[admin]\n\
             listen = \"127.0.0.1:2\"\n{UPSTREAM}"
        );
        let mut next = config(&wanted);
        next.server.tls =
            Some(super::super::Tls { cert: "c".into(), key: "k".into(), client_ca: None });
        let notices = next.keep_fixed(&running);
        let keys: Vec<_> = notices.iter().map(|notice| notice.key.as_str()).collect();
        assert_eq!(keys, ["server.listen", "server.workers", "server.tls", "admin.listen"]);
        assert_eq!(
            notices[0].to_string(),
            "restart: server.listen: cannot change while the gateway runs: [127.0.0.1:8080] stays \
             in force; restart to have [127.0.0.1:1]"
        );
        assert_eq!(next.server.h2_max_streams, 7, "taken over");
        next.server.h2_max_streams = running.server.h2_max_streams;
        assert_eq!(next, running);
        assert_eq!(next.keep_fixed(&running), []);
    }

    #[test]
    fn changes_are_told_without_values() {
        let key =
            |n: u8| format!("[[tenant.key]]\nsha256 = \"{}\"\n", format!("{n:02x}").repeat(32));
        let before = config(&format!(
            "[[tenant]]\nname = \"a\"\n{}{}[[tenant]]\nname = \"b\"\n{}{UPSTREAM}\
             credential = {{ env = \"PATH\" }}\n",
            key(1),
            key(2),
            key(3)
        ));
        let now = config(&format!(
            "[log]\nlevel = \"debug\"\n[limits]\nstreams = 3\n[[tenant]]\nname = \"a\"\n{}{}\
             [[tenant]]\nname = \"c\"\n{UPSTREAM}[[upstream]]\nname = \"new\"\n\
             urls = [\"http://b\"]\n[[route]]\npath = \"/v1/{{*rest}}\"\nupstream = \"new\"\n",
            key(1),
            key(4)
        ));
        assert_eq!(
            now.changes_since(&before),
            "[limits]; [log]; tenant added: c; tenant removed: b; tenant changed: a; keys added: 1; \
             keys revoked: 2; upstream added: new; upstream changed: main; \
             route changed: /v1/{*rest}"
        );
        assert_eq!(now.changes_since(&now.clone()), "");
        let mut many = before.clone();
        many.tenants = (0..20)
            .map(|n| super::super::Tenant { name: format!("t{n:02}"), ..before.tenants[0].clone() })
            .collect();
        let said = many.changes_since(&before);
        assert!(said.contains("t06, t07 and 12 more; "), "{said}");
    }
}
