//! Credentials that others vouch for: tokens of OpenID Connect issuers, and tokens that a webhook judges.

pub mod config;
pub mod flags;
pub mod oidc;
mod outgoing;
pub mod webhook;

pub use flags::{AuthenticationFlags, FlagError};
