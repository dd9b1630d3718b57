//! The signatures of all functions, as text, and their parsed form.
//!
//! A line is `name(parameters) result`; `.name` has a receiver, which is the first parameter. Capital letters stand for one
//! type throughout a line. Which libraries are on: `k8s.io/apiserver/pkg/cel/environment/base.go` of Kubernetes 1.36.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::types::Type;

/// One way to call a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    pub receiver: bool,
    pub params: Vec<Type>,
    pub result: Type,
}

const TEXT: &str = "
!_(bool) bool
-_(int) int
-_(double) double
_&&_(bool, bool) bool
_||_(bool, bool) bool
_?_:_(bool, A, A) A
@not_strictly_false(bool) bool
_==_(A, A) bool
_!=_(A, A) bool
_+_(int, int) int
_+_(uint, uint) uint
_+_(double, double) double
_+_(string, string) string
_+_(bytes, bytes) bytes
_+_(list(A), list(A)) list(A)
_+_(duration, duration) duration
_+_(timestamp, duration) timestamp
_+_(duration, timestamp) timestamp
_-_(int, int) int
_-_(uint, uint) uint
_-_(double, double) double
_-_(duration, duration) duration
_-_(timestamp, duration) timestamp
_-_(timestamp, timestamp) duration
_*_(int, int) int
_*_(uint, uint) uint
_*_(double, double) double
_/_(int, int) int
_/_(uint, uint) uint
_/_(double, double) double
_%_(int, int) int
_%_(uint, uint) uint
_[_](list(A), int) A
_[_](map(A, B), A) B
_[_](optional(list(A)), int) optional(A)
_[_](optional(map(A, B)), A) optional(B)
_[?_](list(A), int) optional(A)
_[?_](map(A, B), A) optional(B)
_[?_](optional(list(A)), int) optional(A)
_[?_](optional(map(A, B)), A) optional(B)
@in(A, list(A)) bool
@in(A, map(A, B)) bool
cel.@mapInsert(map(A, B), map(A, B)) map(A, B)
cel.@mapInsert(map(A, B), A, B) map(A, B)
size(string) int
size(bytes) int
size(list(A)) int
size(map(A, B)) int
.size(string) int
.size(bytes) int
.size(list(A)) int
.size(map(A, B)) int
type(A) type(A)
dyn(A) dyn
bool(bool) bool
bool(string) bool
bytes(bytes) bytes
bytes(string) bytes
double(double) double
double(int) double
double(uint) double
double(string) double
duration(duration) duration
duration(string) duration
int(int) int
int(uint) int
int(double) int
int(string) int
int(timestamp) int
int(duration) int
string(string) string
string(bool) string
string(int) string
string(uint) string
string(double) string
string(bytes) string
string(timestamp) string
string(duration) string
string(net.IP) string
string(net.CIDR) string
timestamp(timestamp) timestamp
timestamp(string) timestamp
timestamp(int) timestamp
uint(uint) uint
uint(int) uint
uint(double) uint
uint(string) uint
.contains(string, string) bool
.startsWith(string, string) bool
.endsWith(string, string) bool
matches(string, string) bool
.matches(string, string) bool
.getDate(timestamp) int
.getDate(timestamp, string) int
.getDayOfMonth(timestamp) int
.getDayOfMonth(timestamp, string) int
.getDayOfWeek(timestamp) int
.getDayOfWeek(timestamp, string) int
.getDayOfYear(timestamp) int
.getDayOfYear(timestamp, string) int
.getFullYear(timestamp) int
.getFullYear(timestamp, string) int
.getMonth(timestamp) int
.getMonth(timestamp, string) int
.getHours(timestamp) int
.getHours(timestamp, string) int
.getHours(duration) int
.getMinutes(timestamp) int
.getMinutes(timestamp, string) int
.getMinutes(duration) int
.getSeconds(timestamp) int
.getSeconds(timestamp, string) int
.getSeconds(duration) int
.getMilliseconds(timestamp) int
.getMilliseconds(timestamp, string) int
.getMilliseconds(duration) int
optional.of(A) optional(A)
optional.ofNonZeroValue(A) optional(A)
optional.none() optional(A)
.hasValue(optional(A)) bool
.value(optional(A)) A
optional.unwrap(list(optional(A))) list(A)
.unwrapOpt(list(optional(A))) list(A)
.first(list(A)) optional(A)
.last(list(A)) optional(A)
.or(optional(A), optional(A)) optional(A)
.orValue(optional(A), A) A
.charAt(string, int) string
.indexOf(string, string) int
.indexOf(string, string, int) int
.lastIndexOf(string, string) int
.lastIndexOf(string, string, int) int
.join(list(string)) string
.join(list(string), string) string
.lowerAscii(string) string
.upperAscii(string) string
.replace(string, string, string) string
.replace(string, string, string, int) string
.split(string, string) list(string)
.split(string, string, int) list(string)
.substring(string, int) string
.substring(string, int, int) string
.trim(string) string
.format(string, list(dyn)) string
strings.quote(string) string
.isSorted(list(int)) bool
.isSorted(list(uint)) bool
.isSorted(list(double)) bool
.isSorted(list(bool)) bool
.isSorted(list(duration)) bool
.isSorted(list(timestamp)) bool
.isSorted(list(string)) bool
.isSorted(list(bytes)) bool
.sum(list(int)) int
.sum(list(uint)) uint
.sum(list(double)) double
.sum(list(duration)) duration
.min(list(int)) int
.min(list(uint)) uint
.min(list(double)) double
.min(list(bool)) bool
.min(list(duration)) duration
.min(list(timestamp)) timestamp
.min(list(string)) string
.min(list(bytes)) bytes
.max(list(int)) int
.max(list(uint)) uint
.max(list(double)) double
.max(list(bool)) bool
.max(list(duration)) duration
.max(list(timestamp)) timestamp
.max(list(string)) string
.max(list(bytes)) bytes
.indexOf(list(A), A) int
.lastIndexOf(list(A), A) int
.distinct(list(A)) list(A)
.flatten(list(list(A))) list(A)
.flatten(list(dyn), int) list(dyn)
lists.range(int) list(int)
.reverse(list(A)) list(A)
.slice(list(A), int, int) list(A)
.sort(list(int)) list(int)
.sort(list(uint)) list(uint)
.sort(list(double)) list(double)
.sort(list(bool)) list(bool)
.sort(list(duration)) list(duration)
.sort(list(timestamp)) list(timestamp)
.sort(list(string)) list(string)
.sort(list(bytes)) list(bytes)
.@sortByAssociatedKeys(list(A), list(int)) list(A)
.@sortByAssociatedKeys(list(A), list(uint)) list(A)
.@sortByAssociatedKeys(list(A), list(double)) list(A)
.@sortByAssociatedKeys(list(A), list(bool)) list(A)
.@sortByAssociatedKeys(list(A), list(duration)) list(A)
.@sortByAssociatedKeys(list(A), list(timestamp)) list(A)
.@sortByAssociatedKeys(list(A), list(string)) list(A)
.@sortByAssociatedKeys(list(A), list(bytes)) list(A)
sets.contains(list(A), list(A)) bool
sets.equivalent(list(A), list(A)) bool
sets.intersects(list(A), list(A)) bool
.includes(dyn, dyn) bool
.find(string, string) string
.findAll(string, string) list(string)
.findAll(string, string, int) list(string)
url(string) kubernetes.URL
isURL(string) bool
.getScheme(kubernetes.URL) string
.getHost(kubernetes.URL) string
.getHostname(kubernetes.URL) string
.getPort(kubernetes.URL) string
.getEscapedPath(kubernetes.URL) string
.getQuery(kubernetes.URL) map(string, list(string))
quantity(string) kubernetes.Quantity
isQuantity(string) bool
sign(kubernetes.Quantity) int
.isGreaterThan(kubernetes.Quantity, kubernetes.Quantity) bool
.isLessThan(kubernetes.Quantity, kubernetes.Quantity) bool
.compareTo(kubernetes.Quantity, kubernetes.Quantity) int
.asApproximateFloat(kubernetes.Quantity) double
.asInteger(kubernetes.Quantity) int
.isInteger(kubernetes.Quantity) bool
.add(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity
.add(kubernetes.Quantity, int) kubernetes.Quantity
.sub(kubernetes.Quantity, kubernetes.Quantity) kubernetes.Quantity
.sub(kubernetes.Quantity, int) kubernetes.Quantity
ip(string) net.IP
isIP(string) bool
ip.isCanonical(string) bool
.family(net.IP) int
.isUnspecified(net.IP) bool
.isLoopback(net.IP) bool
.isLinkLocalMulticast(net.IP) bool
.isLinkLocalUnicast(net.IP) bool
.isGlobalUnicast(net.IP) bool
cidr(string) net.CIDR
isCIDR(string) bool
.containsIP(net.CIDR, string) bool
.containsIP(net.CIDR, net.IP) bool
.containsCIDR(net.CIDR, string) bool
.containsCIDR(net.CIDR, net.CIDR) bool
.ip(net.CIDR) net.IP
.masked(net.CIDR) net.CIDR
.prefixLength(net.CIDR) int
semver(string) kubernetes.Semver
semver(string, bool) kubernetes.Semver
isSemver(string) bool
isSemver(string, bool) bool
.major(kubernetes.Semver) int
.minor(kubernetes.Semver) int
.patch(kubernetes.Semver) int
.isGreaterThan(kubernetes.Semver, kubernetes.Semver) bool
.isLessThan(kubernetes.Semver, kubernetes.Semver) bool
.compareTo(kubernetes.Semver, kubernetes.Semver) int
.validate(kubernetes.NamedFormat, string) optional(list(string))
format.named(string) optional(kubernetes.NamedFormat)
format.dns1123Label() kubernetes.NamedFormat
format.dns1123Subdomain() kubernetes.NamedFormat
format.dns1035Label() kubernetes.NamedFormat
format.qualifiedName() kubernetes.NamedFormat
format.dns1123LabelPrefix() kubernetes.NamedFormat
format.dns1123SubdomainPrefix() kubernetes.NamedFormat
format.dns1035LabelPrefix() kubernetes.NamedFormat
format.labelValue() kubernetes.NamedFormat
format.uri() kubernetes.NamedFormat
format.uuid() kubernetes.NamedFormat
format.byte() kubernetes.NamedFormat
format.date() kubernetes.NamedFormat
format.datetime() kubernetes.NamedFormat
jsonpatch.escapeKey(string) string
.path(kubernetes.authorization.Authorizer, string) kubernetes.authorization.PathCheck
.group(kubernetes.authorization.Authorizer, string) kubernetes.authorization.GroupCheck
.serviceAccount(kubernetes.authorization.Authorizer, string, string) kubernetes.authorization.Authorizer
.resource(kubernetes.authorization.GroupCheck, string) kubernetes.authorization.ResourceCheck
.subresource(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.namespace(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.name(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.fieldSelector(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.labelSelector(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.ResourceCheck
.check(kubernetes.authorization.PathCheck, string) kubernetes.authorization.Decision
.check(kubernetes.authorization.ResourceCheck, string) kubernetes.authorization.Decision
.allowed(kubernetes.authorization.Decision) bool
.reason(kubernetes.authorization.Decision) string
.errored(kubernetes.authorization.Decision) bool
.error(kubernetes.authorization.Decision) string
";

/// Names that stand for numbers of types with an order, in `_<_` and its kin.
const ORDERED: [&str; 7] = ["bool", "int", "uint", "double", "string", "timestamp", "duration"];

/// All signatures by function name.
pub fn signatures() -> &'static BTreeMap<String, Vec<Signature>> {
    static PARSED: OnceLock<BTreeMap<String, Vec<Signature>>> = OnceLock::new();
    PARSED.get_or_init(|| {
        let mut all: BTreeMap<String, Vec<Signature>> = BTreeMap::new();
        for line in TEXT.lines().filter(|l| !l.is_empty()) {
            let (name, signature) = parse_line(line);
            all.entry(name).or_default().push(signature);
        }
        for operator in ["_<_", "_<=_", "_>_", "_>=_"] {
            let numeric = ["int", "uint", "double"];
            let mixed = numeric.iter().flat_map(|a| numeric.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
            for (a, b) in ORDERED.iter().map(|t| (*t, *t)).chain([("bytes", "bytes")]).chain(mixed) {
                let (_, signature) = parse_line(&format!("{operator}({a}, {b}) bool"));
                all.entry(operator.to_owned()).or_default().push(signature);
            }
        }
        all
    })
}

fn parse_line(line: &str) -> (String, Signature) {
    let receiver = line.starts_with('.');
    let line = line.trim_start_matches('.');
    // Operators contain brackets, but never a parenthesis.
    let (name, rest) = line.split_once('(').expect("a signature has parameters");
    let mut text = rest;
    let mut params = Vec::new();
    while !text.starts_with(')') {
        let (ty, rest) = parse_type(text);
        params.push(ty);
        text = rest.trim_start_matches([',', ' ']);
    }
    let (result, _) = parse_type(text[1..].trim_start());
    (name.to_owned(), Signature { receiver, params, result })
}

fn parse_type(text: &str) -> (Type, &str) {
    let end = text.find(['(', ')', ',', ' ']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let one = |rest: &'_ str| -> (Type, usize) {
        let (inner, after) = parse_type(&rest[1..]);
        (inner, rest.len() - after.len() + 1)
    };
    match word {
        "list" | "optional" | "type" => {
            let (inner, used) = one(rest);
            let ty = match word {
                "list" => Type::list(inner),
                "optional" => Type::optional(inner),
                _ => Type::Type(std::sync::Arc::new(inner)),
            };
            (ty, &rest[used..])
        }
        "map" => {
            let (key, after) = parse_type(&rest[1..]);
            let (value, after) = parse_type(after.trim_start_matches([',', ' ']));
            (Type::map(key, value), &after[1..])
        }
        _ => (simple_type(word), rest),
    }
}

fn simple_type(word: &str) -> Type {
    match word {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        _ => Type::Opaque(
            OPAQUE.iter().find(|name| **name == word).unwrap_or_else(|| unreachable!("the text is ours: {word}")),
        ),
    }
}

/// Types of the Kubernetes libraries.
const OPAQUE: [&str; 11] = [
    "kubernetes.URL",
    "kubernetes.Quantity",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
    "net.IP",
    "net.CIDR",
    AUTHORIZER,
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
];

/// The type of the variable `authorizer`.
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read_from_text() {
        let all = signatures();
        assert_eq!(all["_[_]"][1].params, [Type::map(Type::Param(0), Type::Param(1)), Type::Param(0)]);
        assert_eq!(all["_[_]"][1].result, Type::Param(1));
        assert!(all["contains"][0].receiver);
        assert_eq!(all["getQuery"][0].result, Type::map(Type::String, Type::list(Type::String)));
        assert_eq!(all["findAll"][1].params.len(), 3);
        assert_eq!(all["optional.none"][0].params, []);
        assert_eq!(all["_<_"].len(), 14);
    }
}
