//! `[log]`: how much is logged.

use super::read::{Reading, Section};

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important lines that are written.
    pub level: Level,
}

/// Importance of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing at all.
    Off,
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// A line per ended stream.
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    const ALL: [(&'static str, Level); 6] = [
        ("off", Level::Off),
        ("error", Level::Error),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("debug", Level::Debug),
        ("trace", Level::Trace),
    ];

    /// The name as the configuration writes it.
    pub fn as_str(self) -> &'static str {
        let named = Self::ALL.iter().find(|(_, level)| *level == self);
        named.map_or("info", |(name, _)| name)
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: Level::Info }
    }
}

pub(super) fn read(r: &mut Reading<'_>, root: &Section<'_>) -> Log {
    let s = r.section(root, "log");
    Log { level: r.choice(&s, "level", &Level::ALL, Log::default().level) }
}
