//! Names every third-party dependency of the workspace once, and holds no code.
//!
//! Building one crate together with this one (`cargo check -p store -p workspace-features`) resolves dependencies with the
//! same features as building everything, so nothing is compiled twice. No crate depends on it.
