//! Static tokens (`--token-auth-file`): lines of `token,user,uid,"group1,group2"`.
//!
//! Follows: `k8s.io/apiserver/pkg/authentication/token/tokenfile`.

use std::collections::HashMap;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::{TokenAuthenticator, TokenUser};
use crate::authn::{ALL_AUTHENTICATED, AuthenticationError, UserInfo};

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenFileError {
    #[error("line {line} must have at least 3 columns (token, user name, user uid), found {found}")]
    Columns { line: usize, found: usize },
    #[error("line {line}: a quoted column does not end")]
    Quote { line: usize },
}

/// Accepts the tokens of one file, which is read once.
#[derive(Debug, Default)]
pub struct TokenFile {
    /// By the hash of the token: how long a look-up takes tells nothing about one.
    users: HashMap<[u8; 32], UserInfo>,
}

impl TokenFile {
    /// Reads the text of a file. Of two lines with one token the last counts; a line without a token does not.
    pub fn parse(text: &str) -> Result<TokenFile, TokenFileError> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let columns = columns(line).ok_or(TokenFileError::Quote { line: index + 1 })?;
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                return Err(TokenFileError::Columns { line: index + 1, found: columns.len() });
            };
            if token.is_empty() {
                continue;
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let groups = groups.split(',').filter(|group| !group.is_empty()).chain([ALL_AUTHENTICATED]);
            let mut user = UserInfo::new(name.as_str(), groups);
            user.uid = uid.clone();
            users.insert(Sha256::digest(token.as_bytes()).into(), user);
        }
        Ok(TokenFile { users })
    }
}

/// The columns of one line; nothing when a quote is left open.
fn columns(line: &str) -> Option<Vec<String>> {
    let mut found = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let last = found.last_mut()?;
        match character {
            '"' if quoted && characters.next_if_eq(&'"').is_some() => last.push('"'),
            '"' if quoted => quoted = false,
            '"' if last.is_empty() => quoted = true,
            ',' if !quoted => found.push(String::new()),
            ' ' if !quoted && last.is_empty() => {}
            other => last.push(other),
        }
    }
    (!quoted).then_some(found)
}

#[async_trait]
impl TokenAuthenticator for TokenFile {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenUser>, AuthenticationError> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let user = self.users.get(&digest).cloned();
        Ok(user.map(|user| TokenUser { user, audiences: audiences.to_vec() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_file_names_users_with_their_uid_and_groups() {
        let text =
            "abc,alice,1,\"dev,ops\"\n\nq1, \"bob \"\"b\"\"\",2\n,nobody,3\nabc2,carol,4,one\nabc2,carol,5,two\n";
        let file = TokenFile::parse(text).unwrap();
        for (token, want) in [
            ("abc", Some(("alice", "1", vec!["dev", "ops", ALL_AUTHENTICATED]))),
            ("q1", Some(("bob \"b\"", "2", vec![ALL_AUTHENTICATED]))),
            ("abc2", Some(("carol", "5", vec!["two", ALL_AUTHENTICATED]))),
            ("", None),
            ("abcd", None),
        ] {
            let found = file.authenticate_token(token, &[]).await.unwrap().map(|found| found.user);
            let found = found.as_ref();
            let got = found.map(|user| (user.name.as_str(), user.uid.as_str(), user.groups.iter().map(String::as_str)));
            assert_eq!(got.map(|(name, uid, groups)| (name, uid, groups.collect())), want, "{token}");
        }
        for (text, want) in [
            ("a,b,c\nd,e\n", TokenFileError::Columns { line: 2, found: 2 }),
            ("a,\"b,c", TokenFileError::Quote { line: 1 }),
        ] {
            assert_eq!(TokenFile::parse(text).unwrap_err(), want, "{text}");
        }
    }
}
