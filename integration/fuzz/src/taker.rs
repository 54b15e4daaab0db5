//! Choices made by bytes: what a fuzzer mutates stays mostly the same after each mutation.

/// Takes choices from the front; when nothing is left, every choice is the first one.
pub(crate) struct Taker<'a>(&'a [u8]);

impl<'a> Taker<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// One of these; the slice is never empty.
    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// Up to a zero byte, or all that is left.
    pub(crate) fn text(&mut self) -> String {
        let mut parts = self.0.splitn(2, |byte| *byte == 0);
        let text = parts.next().unwrap_or_default();
        self.0 = parts.next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}
