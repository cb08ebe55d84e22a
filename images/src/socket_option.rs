//! Options of sockets, all of one in a single piece of memory: a socket has up to a hundred, and a tree ten thousands of sockets.

use alloc::vec::Vec;
use core::fmt;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An option as getsockopt(2) gives it to an x86_64 task and setsockopt(2) takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption<'a> {
    /// SOL_*.
    pub level: u32,
    /// SO_*.
    pub name: u32,
    /// The value.
    #[serde(serialize_with = "crate::readable::hex")]
    pub value: &'a [u8],
}

/// Options in the order in which they are set. In images, and in readable formats, a list of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// How many there are.
    count: usize,
    /// One after the other as an image has them, and nothing else.
    bytes: Vec<u8>,
}

impl SocketOptions {
    /// All of them.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { left: self.count, bytes: &self.bytes }
    }

    /// Adds one, behind the others.
    pub fn push(&mut self, option: &SocketOption<'_>) {
        let bytes = core::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(option, bytes).expect("numbers and bytes, written to memory");
        self.count += 1;
    }

    /// Gives back the room that was kept for more.
    pub fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
    }
}

/// See [`SocketOptions::iter`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Iter<'a> {
    type Item = SocketOption<'a>;

    fn next(&mut self) -> Option<SocketOption<'a>> {
        self.left = self.left.checked_sub(1)?;
        // They were written by `push`.
        let (option, rest) = postcard::take_from_bytes(self.bytes).ok()?;
        self.bytes = rest;
        Some(option)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a SocketOptions {
    type Item = SocketOption<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<'a> FromIterator<SocketOption<'a>> for SocketOptions {
    fn from_iter<I: IntoIterator<Item = SocketOption<'a>>>(options: I) -> Self {
        let mut all = Self::default();
        options.into_iter().for_each(|option| all.push(&option));
        all.shrink_to_fit();
        all
    }
}

impl fmt::Debug for SocketOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl Serialize for SocketOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

impl<'de> Deserialize<'de> for SocketOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = SocketOptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of socket options")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<SocketOptions, A::Error> {
                let mut all = SocketOptions::default();
                while let Some(option) = list.next_element()? {
                    all.push(&option);
                }
                all.shrink_to_fit();
                Ok(all)
            }
        }

        deserializer.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_list_as_any_other() {
        let options = [
            SocketOption { level: 1, name: 7, value: &[1, 0, 0, 0] },
            SocketOption { level: 270, name: 300, value: &[] },
            SocketOption { level: u32::MAX, name: 0, value: &[7; 256] },
        ];
        let all: SocketOptions = options.into_iter().collect();
        assert_eq!(all.iter().collect::<Vec<_>>(), options);
        assert_eq!(all.iter().len(), 3);
        let bytes = postcard::to_allocvec(&all).unwrap();
        assert_eq!(bytes, postcard::to_allocvec(&options.to_vec()).unwrap());
        assert_eq!(postcard::from_bytes::<SocketOptions>(&bytes).unwrap(), all);
        let cut: Result<SocketOptions, _> = postcard::from_bytes(&bytes[..bytes.len() - 1]);
        cut.unwrap_err();
        assert_eq!(postcard::from_bytes::<SocketOptions>(&[0]).unwrap(), SocketOptions::default());
        assert_eq!(SocketOptions::default().iter().collect::<Vec<_>>(), vec![]);
    }
}
