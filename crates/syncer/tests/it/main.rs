//! The syncer as tables, and between two real API servers in this process: a development host, and a virtual control plane.

mod clash;
mod cluster;
mod docs;
mod hostile;
mod properties;
mod translate;
