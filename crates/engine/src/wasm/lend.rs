//! Lends a borrowed [`StateReader`] to a store for the length of one call.
//!
//! A wasmtime store holds `'static` data, and the plane lends us its reader only while the call runs. This module is
//! the one place that bridges the two, with a pointer that is there exactly while [`lend`] is on the stack.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use buttress_core::guest::StateReader;

/// Where a store keeps the reader that was lent to it.
#[derive(Default)]
pub(crate) struct Lent(Option<NonNull<dyn StateReader>>);

// SAFETY: `StateReader` is `Send`, and the pointer is used only through `&mut Lent`, so by one thread at a time. It is
// there only while `Loan` lives, which borrows the reader exclusively.
unsafe impl Send for Lent {}

impl Lent {
    /// The reader, while one is lent.
    pub(crate) fn get(&mut self) -> Option<&mut (dyn StateReader + '_)> {
        // SAFETY: the pointer was made from an exclusive borrow that `with` holds for as long as the pointer is
        // there; `with` removes it before that borrow ends, also when it unwinds. The reference given out borrows
        // `self` exclusively, so there is at most one.
        self.0.map(|mut reader| unsafe { reader.as_mut() })
    }

    fn put(&mut self, reader: &mut dyn StateReader) {
        let pointer: NonNull<dyn StateReader + '_> = NonNull::from(reader);
        // SAFETY: this only forgets the lifetime, which `with` enforces by hand.
        self.0 =
            Some(unsafe { std::mem::transmute::<NonNull<dyn StateReader + '_>, NonNull<dyn StateReader>>(pointer) });
    }
}

/// Lends `reader` to the slot that `slot` finds in `owner`, runs `body`, and takes it back, also on unwinding.
pub(crate) fn with<T, R>(
    owner: &mut T,
    slot: fn(&mut T) -> &mut Lent,
    reader: &mut dyn StateReader,
    body: impl FnOnce(&mut T) -> R,
) -> R {
    struct Return<'a, T>(&'a mut T, fn(&mut T) -> &mut Lent);
    impl<T> Drop for Return<'_, T> {
        fn drop(&mut self) {
            (self.1)(self.0).0 = None;
        }
    }
    slot(owner).put(reader);
    let back = Return(owner, slot);
    body(&mut *back.0)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    struct Count(u32);
    impl StateReader for Count {
        fn get(&mut self, _: &[u8]) -> Result<Option<Bytes>, String> {
            self.0 += 1;
            Ok(None)
        }
    }

    #[test]
    fn the_reader_is_there_only_while_lent() {
        let mut lent = Lent::default();
        assert!(lent.get().is_none());
        let mut reader = Count(0);
        with(
            &mut lent,
            |lent| lent,
            &mut reader,
            |lent| {
                lent.get().expect("lent").get(b"k").expect("the fake answers");
            },
        );
        assert!(lent.get().is_none());
        assert_eq!(reader.0, 1);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            with(&mut lent, |lent| lent, &mut reader, |_| panic!("in the guest"));
        }));
        assert!(unwound.is_err());
        assert!(lent.get().is_none());
    }
}
