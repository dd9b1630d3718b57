//! The syncer as tables, and between two real API servers in this process: a development host, and a virtual control plane.

#![allow(clippy::print_stdout, reason = "seeds and counts are for people to read")]

mod apply;
mod clash;
mod cluster;
mod configured;
mod devices;
mod docs;
mod examples;
mod faults;
mod host_files;
mod hostile;
mod hostile_routes;
mod mappings;
mod orphans;
mod pods;
mod properties;
mod restart;
mod routes;
mod scripted;
mod services;
mod simulator;
mod sync_more;
mod tokens;
mod translate;
mod versions;
