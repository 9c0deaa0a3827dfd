//! The configuration: TOML in, typed values out, every fault at once.
//!
//! Owns what users may set, its defaults and its meaning (docs/CONFIG.md); fixed limits live in
//! [`crate::limits`]. A file is parsed into a tree that knows its positions, each section is read
//! by its own module, and relations between sections are looked at last. Refuses unknown keys.
//! Invariant: a [`Config`] that leaves this module is complete, and its secrets show in no Debug
//! output. Cost: paid at start and reload only.

use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

mod advice;
mod change;
mod cors;
mod credential;
mod fault;
mod files;
mod headers;
mod keys;
mod limits;
mod log;
mod nearest;
mod pool;
mod read;
mod resilience;
mod route;
mod server;
mod stream;
mod tenant;
#[cfg(test)]
mod tests;
mod units;
mod upstream;
mod url;
mod usage;
mod values;

pub use cors::Cors;
pub use credential::{Credential, CredentialSource};
pub use fault::{Fault, Faults, Notice, NoticeKind};
pub use keys::keys;
pub use limits::{Limits, PerIp};
pub use log::{Level, Log};
pub use pool::PoolRule;
pub use resilience::{Balance, BreakerRule, HealthRule, RetryRule, Statuses, Sticky};
pub use route::{Auth, Family, HeartbeatStyle, Route, UsageRule};
pub use server::{Admin, Server, Tls};
pub use stream::Stream;
pub use tenant::{Key, Priority, Tenant};
pub use upstream::{HttpVersion, Upstream};
pub use url::{Scheme, Url};
pub use usage::Usage;

use read::{Env, Reading};

/// The longest duration that any key takes: a week, as far as hours are still readable.
const LONGEST: Duration = Duration::from_secs(168 * 3600);

/// A complete, checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The data side.
    pub server: Server,
    /// The admin side.
    pub admin: Admin,
    /// Bounds of every stream.
    pub stream: Stream,
    /// Bounds of the process.
    pub limits: Limits,
    /// Web pages that may use the gateway.
    pub cors: Cors,
    /// The log.
    pub log: Log,
    /// What is counted of usage.
    pub usage: Usage,
    /// Who may use routes that ask for a key.
    pub tenants: Vec<Tenant>,
    /// The upstreams, at least one.
    pub upstreams: Vec<Upstream>,
    /// The routes, at least one; each refers to an upstream by index.
    pub routes: Vec<Route>,
}

/// A configuration and what its author should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Notices in the order of the file; those about absent keys come last.
    pub notices: Vec<Notice>,
}

/// Reads and checks a configuration file.
///
/// Credentials are taken from the environment and from files now; relative paths in the file
/// start at its folder.
///
/// # Errors
/// Every fault of the file, or the one that it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, Faults> {
    let file = path.display().to_string();
    match files::text(path) {
        Ok(text) => parse(&text, &file),
        Err(text) => Err(Faults {
            faults: vec![Fault { file, line: None, column: None, key: String::new(), text }],
        }),
    }
}

/// Checks a configuration given as text. `file_name` appears in messages, and relative paths in
/// the text start at its folder.
///
/// # Errors
/// Every fault of the text.
pub fn parse(text: &str, file_name: &str) -> Result<Loaded, Faults> {
    parse_with(text, file_name, &|name| std::env::var_os(name))
}

/// The configuration of `serve --upstream URL` without a file: one upstream `main`, all defaults,
/// the client's own credential forwarded. Routes are `/v1/{*rest}` and, if the URL has a path of
/// its own, `/that/path/{*rest}` as well.
///
/// # Errors
/// One fault if the URL is not one that an upstream may have.
pub fn for_upstream(url: &str) -> Result<Loaded, Faults> {
    let url = url::parse(url).map_err(|text| Faults {
        faults: vec![Fault {
            file: String::new(),
            line: None,
            column: None,
            key: "--upstream".to_owned(),
            text: format!("the URL {text}"),
        }],
    })?;
    let config = Config {
        server: Server::default(),
        admin: Admin::default(),
        stream: Stream::default(),
        limits: Limits::default(),
        cors: Cors::default(),
        log: Log::default(),
        usage: Usage::default(),
        tenants: Vec::new(),
        routes: route::for_url(&url),
        upstreams: vec![Upstream::new("main", url)],
    };
    let notices = config.advice();
    Ok(Loaded { config, notices })
}

fn parse_with(text: &str, file_name: &str, env: Env<'_>) -> Result<Loaded, Faults> {
    let mut r = Reading::new(file_name, text, env);
    let (tree, errors) = DeTable::parse_recoverable(text);
    if report_syntax(&mut r, text, errors) {
        return Err(in_order(r.faults));
    }
    let root = r.root(tree.get_ref());
    let (server, admin) = server::read(&mut r, &root);
    let stream = stream::read(&mut r, &root);
    let limits = limits::read(&mut r, &root);
    let (cors, log) = (cors::read(&mut r, &root), log::read(&mut r, &root));
    let usage = usage::read(&mut r, &root);
    let tenants = tenant::read(&mut r, &root);
    let upstreams = upstream::read(&mut r, &root);
    let routes = route::read(&mut r, &root, &upstreams, &tenants);
    if !r.faults.is_empty() {
        return Err(in_order(r.faults));
    }
    let config =
        Config { server, admin, stream, limits, cors, log, usage, tenants, upstreams, routes };
    let advice = config.advice().into_iter().map(|notice| {
        let line = r.place(&notice.key).line;
        Notice { line, ..notice }
    });
    let mut notices: Vec<Notice> = advice.collect();
    notices.append(&mut r.notices);
    notices.sort_by_key(|notice| notice.line.unwrap_or(usize::MAX));
    Ok(Loaded { config, notices })
}

/// Reports syntax errors; true if the tree is not worth reading. After the first place that is not
/// TOML the parser guesses, and blames every line of an open bracket, so only that one is told.
/// Keys that stand twice leave the rest of the tree intact.
fn report_syntax(r: &mut Reading<'_>, text: &str, errors: Vec<toml::de::Error>) -> bool {
    let start = |error: &toml::de::Error| error.span().map_or(text.len(), |span| span.start);
    let keeps_tree = |error: &toml::de::Error| {
        let message = error.message();
        message.starts_with("duplicate key") || message.starts_with("cannot extend")
    };
    let first = errors.iter().filter(|error| !keeps_tree(error)).map(start).min();
    let mut told = false;
    for error in &errors {
        let here = first == Some(start(error)) && !told && !keeps_tree(error);
        told |= here;
        if here || keeps_tree(error) && first.is_none_or(|first| start(error) < first) {
            r.syntax(text, Some(start(error)), error.message());
        }
    }
    first.is_some()
}

fn in_order(mut faults: Vec<Fault>) -> Faults {
    faults.sort_by_key(|fault| (fault.line.unwrap_or(usize::MAX), fault.column));
    Faults { faults }
}
