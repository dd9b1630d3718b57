//! Names and hashes that controllers make.

use apimachinery::Value;
use sha2::{Digest, Sha256};

/// The letters of `k8s.io/apimachinery/pkg/util/rand`: no vowels, nothing that looks like another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Encodes a hash as upstream does: the decimal digits, each mapped into the alphabet.
pub fn safe_encode(hash: u32) -> String {
    hash.to_string().bytes().map(|b| ALPHABET[usize::from(b) % ALPHABET.len()] as char).collect()
}

/// The hash of a pod template. Upstream hashes a dump of Go structures; this hashes the sorted JSON, which is as stable.
pub fn template_hash(template: &Value, collisions: Option<i64>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(template.to_vec());
    if let Some(collisions) = collisions {
        hasher.update(collisions.to_le_bytes());
    }
    let digest = hasher.finalize();
    safe_encode(u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

/// FNV-1a, 32 bits.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn hashes_use_the_safe_alphabet_and_change_with_collisions() {
        assert_eq!(safe_encode(0), "4");
        let template = json!({"spec": {"containers": []}});
        let first = template_hash(&template, None);
        assert_eq!(first, template_hash(&template.clone(), None));
        assert_ne!(first, template_hash(&template, Some(1)));
        assert!(first.bytes().all(|b| ALPHABET.contains(&b)));
        assert_eq!(fnv32a(b"a"), 0xe40c_292c);
    }
}
