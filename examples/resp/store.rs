//! What the server knows, and what its commands do with it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::protocol::{REPLY_MAX, Reply};

type Bytes = Vec<u8>;

/// The most keys, and the most elements of one of them.
const KEYS_MAX: usize = 1_000_000;
const ELEMENTS_MAX: usize = 1_000_000;

#[derive(Debug, Default)]
pub(crate) struct Store {
    keys: HashMap<Bytes, Value>,
}

#[derive(Debug)]
enum Value {
    Text(Bytes),
    List(VecDeque<Bytes>),
    Set(BTreeSet<Bytes>),
    Hash(HashMap<Bytes, Bytes>),
    Sorted(Sorted),
}

/// Members by their scores.
#[derive(Debug, Default)]
struct Sorted {
    scores: HashMap<Bytes, u64>,
    order: BTreeMap<(u64, Bytes), f64>,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NOT_INTEGER: &str = "ERR value is not an integer or out of range";
const FULL: &str = "OOM command not allowed: the store is full";

type Result<T, E = &'static str> = std::result::Result<T, E>;

/// Defines how a kind of value is found under a key, and made if there is none.
macro_rules! kind {
    ($find:ident, $make:ident, $kind:ident, $type:ty) => {
        fn $find(&mut self, key: &[u8]) -> Result<Option<&mut $type>> {
            match self.keys.get_mut(key) {
                None => Ok(None),
                Some(Value::$kind(value)) => Ok(Some(value)),
                Some(_) => Err(WRONG_TYPE),
            }
        }

        fn $make(&mut self, key: &[u8]) -> Result<&mut $type> {
            if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(key) {
                return Err(FULL);
            }
            match self.keys.entry(key.to_vec()).or_insert_with(|| Value::$kind(Default::default())) {
                Value::$kind(value) if value.len() < ELEMENTS_MAX => Ok(value),
                Value::$kind(_) => Err(FULL),
                _ => Err(WRONG_TYPE),
            }
        }
    };
}

impl Store {
    kind!(list, new_list, List, VecDeque<Bytes>);
    kind!(set, new_set, Set, BTreeSet<Bytes>);
    kind!(hash, new_hash, Hash, HashMap<Bytes, Bytes>);
    kind!(sorted, new_sorted, Sorted, Sorted);

    /// Executes the command `name`, in capitals, and appends its reply: an error, if it cannot be.
    pub(crate) fn execute(&mut self, name: &[u8], args: &[&[u8]], reply: &mut Reply) {
        let before = reply.len();
        let done = self.try_execute(name, args, reply);
        let too_large = reply.len() - before > REPLY_MAX;
        let problem = if too_large { Some("ERR the reply is too large") } else { done.err() };
        if let Some(problem) = problem {
            reply.truncate(before);
            reply.error(problem);
        }
    }

    fn try_execute(&mut self, name: &[u8], args: &[&[u8]], reply: &mut Reply) -> Result<()> {
        match (name, args) {
            (b"PING", []) => reply.simple("PONG"),
            (b"PING" | b"ECHO", [text]) => reply.bulk(text),
            (b"SET", [key, value]) => {
                self.set_text(key, value)?;
                reply.simple("OK");
            }
            (b"MSET", pairs) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                if self.keys.len() + pairs.len() / 2 > KEYS_MAX {
                    return Err(FULL);
                }
                for pair in pairs.chunks_exact(2) {
                    self.set_text(pair[0], pair[1])?;
                }
                reply.simple("OK");
            }
            (b"GET", [key]) => reply.bulk_or_nil(self.text(key)?),
            (b"INCR", [key]) => {
                let text = self.text(key)?.unwrap_or(b"0");
                let number = integer(text)?.checked_add(1).ok_or(NOT_INTEGER)?;
                self.set_text(key, number.to_string().as_bytes())?;
                reply.integer(number);
            }
            (b"DEL", [_, ..]) => {
                let deleted = args.iter().filter(|key| self.keys.remove(**key).is_some()).count();
                reply.integer(deleted as i64);
            }
            (b"LPUSH" | b"RPUSH", [key, elements @ ..]) if !elements.is_empty() => {
                let list = self.new_list(key)?;
                for element in elements {
                    match name {
                        b"LPUSH" => list.push_front(element.to_vec()),
                        _ => list.push_back(element.to_vec()),
                    }
                }
                reply.integer(list.len() as i64);
            }
            (b"LPOP" | b"RPOP", [key]) => {
                let popped = self.list(key)?.and_then(|list| match name {
                    b"LPOP" => list.pop_front(),
                    _ => list.pop_back(),
                });
                reply.bulk_or_nil(popped.as_deref());
                self.forget_if_empty(key);
            }
            (b"LRANGE", [key, start, stop]) => {
                let (start, stop) = (integer(start)?, integer(stop)?);
                let list = self.list(key)?;
                let len = list.as_ref().map_or(0, |list| list.len());
                let (start, end) = range(start, stop, len);
                reply.array(end - start);
                for element in list.iter().flat_map(|list| list.range(start..end)) {
                    if reply.len() > 2 * REPLY_MAX {
                        break; // it is refused for its size
                    }
                    reply.bulk(element);
                }
            }
            (b"SADD", [key, members @ ..]) if !members.is_empty() => {
                let set = self.new_set(key)?;
                reply.integer(members.iter().filter(|member| set.insert(member.to_vec())).count() as i64);
            }
            (b"SPOP", [key]) => {
                // Any member may be the one.
                let popped = self.set(key)?.and_then(BTreeSet::pop_first);
                reply.bulk_or_nil(popped.as_deref());
                self.forget_if_empty(key);
            }
            (b"HSET", [key, fields @ ..]) if !fields.is_empty() && fields.len().is_multiple_of(2) => {
                let hash = self.new_hash(key)?;
                let pairs = fields.chunks_exact(2);
                let new = pairs.filter(|pair| hash.insert(pair[0].to_vec(), pair[1].to_vec()).is_none());
                reply.integer(new.count() as i64);
            }
            (b"HGET", [key, field]) => {
                let value = self.hash(key)?.and_then(|hash| hash.get(*field));
                reply.bulk_or_nil(value.map(Vec::as_slice));
            }
            (b"ZADD", [key, pairs @ ..]) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                let scored: Vec<_> = pairs
                    .chunks_exact(2)
                    .map(|pair| Ok((score(pair[0])?, pair[1])))
                    .collect::<Result<_>>()?;
                let sorted = self.new_sorted(key)?;
                let new = scored.into_iter().filter(|(score, member)| sorted.insert(*score, member));
                reply.integer(new.count() as i64);
            }
            (b"ZPOPMIN", [key]) => {
                match self.sorted(key)?.and_then(Sorted::pop_first) {
                    Some((member, score)) => {
                        reply.array(2);
                        reply.bulk(&member);
                        reply.bulk(score.to_string().as_bytes());
                    }
                    None => reply.array(0),
                }
                self.forget_if_empty(key);
            }
            (b"DBSIZE", []) => reply.integer(self.keys.len() as i64),
            (b"FLUSHALL" | b"FLUSHDB", _) => {
                self.keys.clear();
                reply.simple("OK");
            }
            (b"SELECT", [b"0"]) => reply.simple("OK"),
            (b"INFO", _) => reply.bulk(format!("# Keyspace\r\ndb0:keys={}\r\n", self.keys.len()).as_bytes()),
            (b"COMMAND", _) => reply.array(0),
            (b"CONFIG", [get, option]) if get.eq_ignore_ascii_case(b"GET") => {
                // Nothing is written to disk.
                let value: &[u8] = if option.eq_ignore_ascii_case(b"appendonly") { b"no" } else { b"" };
                reply.array(2);
                reply.bulk(option);
                reply.bulk(value);
            }
            (name, _) if COMMANDS.contains(&name) => return Err("ERR wrong number of arguments"),
            (name, _) => {
                let name = String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned();
                reply.error(&format!("ERR unknown command '{name}'"));
            }
        }
        Ok(())
    }

    fn text(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(WRONG_TYPE),
        }
    }

    fn set_text(&mut self, key: &[u8], text: &[u8]) -> Result<()> {
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(key) {
            return Err(FULL);
        }
        self.keys.insert(key.to_vec(), Value::Text(text.to_vec()));
        Ok(())
    }

    /// A key is there as long as there is something under it.
    fn forget_if_empty(&mut self, key: &[u8]) {
        let is_empty = match self.keys.get(key) {
            Some(Value::List(list)) => list.is_empty(),
            Some(Value::Set(set)) => set.is_empty(),
            Some(Value::Sorted(sorted)) => sorted.len() == 0,
            _ => false,
        };
        if is_empty {
            self.keys.remove(key);
        }
    }
}

/// Those that exist, for an error that says so.
const COMMANDS: [&[u8]; 26] = [
    b"PING",
    b"ECHO",
    b"SET",
    b"MSET",
    b"GET",
    b"INCR",
    b"DEL",
    b"LPUSH",
    b"RPUSH",
    b"LPOP",
    b"RPOP",
    b"LRANGE",
    b"SADD",
    b"SPOP",
    b"HSET",
    b"HGET",
    b"ZADD",
    b"ZPOPMIN",
    b"DBSIZE",
    b"FLUSHALL",
    b"FLUSHDB",
    b"SELECT",
    b"INFO",
    b"COMMAND",
    b"CONFIG",
    b"QUIT",
];

impl Sorted {
    fn len(&self) -> usize {
        self.scores.len()
    }

    /// Returns whether it is a new member.
    fn insert(&mut self, score: f64, member: &[u8]) -> bool {
        let rank = rank(score);
        let earlier = self.scores.insert(member.to_vec(), rank);
        if let Some(earlier) = earlier {
            self.order.remove(&(earlier, member.to_vec()));
        }
        self.order.insert((rank, member.to_vec()), score);
        earlier.is_none()
    }

    fn pop_first(&mut self) -> Option<(Bytes, f64)> {
        let ((_, member), score) = self.order.pop_first()?;
        self.scores.remove(&member);
        Some((member, score))
    }
}

/// Numbers whose order is that of the scores.
fn rank(score: f64) -> u64 {
    let bits = score.to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

fn integer(text: &[u8]) -> Result<i64> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(NOT_INTEGER)
}

fn score(text: &[u8]) -> Result<f64> {
    let score: Option<f64> = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    score.filter(|score| !score.is_nan()).ok_or("ERR value is not a valid float")
}

/// The elements from `start` to `stop`, both included; from the end if negative.
fn range(start: i64, stop: i64, len: usize) -> (usize, usize) {
    let len = len as i64;
    let index = |at: i64| if at < 0 { (len + at).max(-1) } else { at.min(len) };
    let (start, end) = (index(start).max(0), (index(stop) + 1).clamp(0, len));
    (start as usize, end.max(start).min(len.max(start)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the commands, in words, reply.
    fn replies(commands: &[&str]) -> String {
        let (mut store, mut reply) = (Store::default(), Reply::default());
        for command in commands {
            let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
            store.execute(words[0], &words[1..], &mut reply);
        }
        String::from_utf8(reply.bytes().to_vec()).unwrap().replace("\r\n", " ")
    }

    #[test]
    fn lists_are_pushed_popped_and_ranged_over() {
        let commands = [
            "RPUSH l a b",
            "LPUSH l c",
            "LRANGE l 0 -1",
            "LRANGE l -1 9",
            "LRANGE l 5 9",
            "RPOP l",
            "LRANGE l 2 1",
        ];
        let expected = ":2 :3 *3 $1 c $1 a $1 b *1 $1 b *0 $1 b *0 ";
        assert_eq!(replies(&commands), expected);
    }

    #[test]
    fn the_least_score_is_popped_first_and_negative_ones_are_less() {
        let commands = [
            "ZADD z 1 a -2 b 0.5 c",
            "ZADD z 7 b",
            "ZPOPMIN z",
            "ZPOPMIN z",
            "ZPOPMIN z",
            "ZPOPMIN z",
            "DBSIZE",
        ];
        assert_eq!(replies(&commands), ":3 :0 *2 $1 c $3 0.5 *2 $1 a $1 1 *2 $1 b $1 7 *0 :0 ");
    }

    #[test]
    fn what_is_wrong_is_an_error_and_changes_nothing() {
        let commands = [
            "SET k v",
            "INCR k",
            "LPUSH k a",
            "GET",
            "NOPE",
            "ZADD z nan a",
            "SET n 9223372036854775807",
            "INCR n",
            "GET k",
        ];
        let replies = replies(&commands);
        assert_eq!(replies.matches('-').count(), 6, "{replies}");
        assert!(replies.ends_with("$1 v "), "{replies}");
    }

    #[test]
    fn numbers_count_and_keys_can_be_deleted() {
        assert_eq!(
            replies(&["INCR n", "INCR n", "DEL n m", "GET n", "SADD s a a b", "SPOP s", "SPOP s", "SPOP s"]),
            ":1 :2 :1 $-1 :2 $1 a $1 b $-1 "
        );
    }
}
