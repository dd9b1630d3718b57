//! Does a program need a dynamic loader?

use anyhow::{Context, ensure};

/// Program header type: the loader's path.
const PT_INTERP: u32 = 3;

/// Refuses what is no 64-bit little-endian ELF program, or names a loader.
pub fn check_static(bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit ELF program");
    let number = |at: usize, len: usize| -> anyhow::Result<u64> {
        let field = bytes.get(at..at + len).context("the ELF header is cut off")?;
        Ok(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (offset, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    for index in 0..count {
        let kind = number(offset.saturating_add(index * size), 4)? as u32;
        ensure!(
            kind != PT_INTERP,
            "it is linked dynamically; compile it with RUSTFLAGS=-Ctarget-feature=+crt-static and --target"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = kinds.len() as u8;
        for kind in kinds {
            let mut header = vec![0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            bytes.extend(header);
        }
        bytes
    }

    #[test]
    fn a_program_with_a_loader_is_refused() {
        for (bytes, fine) in [
            (program(&[1, 2]), true),
            (program(&[1, 3]), false),
            (program(&[1])[..70].to_vec(), true),
            (program(&[1, 1])[..100].to_vec(), false),
            (b"#!/bin/sh".to_vec(), false),
            (Vec::new(), false),
        ] {
            assert_eq!(check_static(&bytes).is_ok(), fine, "{} bytes", bytes.len());
        }
        // This test itself is linked as usual.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(check_static(&own).unwrap_err().to_string().contains("dynamically"));
    }
}
