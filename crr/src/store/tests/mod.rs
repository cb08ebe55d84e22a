//! Tests of the image directory: what is written is read, and whatever else lies there is named.

mod chain;
mod damaged;
mod inconsistent;
mod random;
mod sample;
mod stream;
mod unchecked;
mod write;
