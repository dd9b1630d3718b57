//! Control planes on a development host, with the rights that they have on a real one.

mod aggregation;
mod ending;
mod older_hosts;
mod policies;
mod replicas;
mod scheduling;
