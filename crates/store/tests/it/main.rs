//! The store from outside.

// Case names and seeds, shown when a test fails.
#![allow(clippy::print_stdout)]

mod basics;
mod contract;
mod crash;
mod external;
mod full;
mod members;
mod model;
mod sqlite;
mod tls;
mod trouble;
