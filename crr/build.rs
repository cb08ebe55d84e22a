//! Builds the two freestanding programs and embeds them.
fn main() {}
