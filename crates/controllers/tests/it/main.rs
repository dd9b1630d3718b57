//! Controllers against a real API server in this process.

mod cluster;
mod objects;
mod schedules;
mod smaller;
mod workloads;
