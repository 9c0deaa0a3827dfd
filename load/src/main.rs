//! `tidegate-load`: the load generator.
fn main() {}
