//! The bytes of a packet.

/// Bounds of the readable part of a packet, as a program gets them from its context.
///
/// A program reads them once per program, because bounds that are read again carry no proof; after a helper that moves
/// packet data they have to be read again.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The bytes from `start` to before `end`.
    ///
    /// # Safety
    /// They must be one allocation that stays readable and writable while the value is used, and nobody else may write
    /// to them meanwhile.
    #[must_use]
    #[inline(always)]
    pub const unsafe fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Number of bytes.
    #[must_use]
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// True for no bytes at all.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// A value at an offset; `None` when it does not lie inside of the frame as a whole.
    ///
    /// `T` must be at least two bytes long: the comparison for a single one becomes `start >= end`, from which the verifier
    /// learns nothing.
    #[must_use]
    #[inline(always)]
    pub fn read<T: Plain>(&self, offset: usize) -> Option<T> {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the comparison proves that the value lies inside of the frame, and `Plain` that any bytes are a value.
        Some(unsafe { load(at as *const T) })
    }

    /// Replaces a value at an offset; false when it does not lie inside of the frame as a whole.
    #[must_use]
    #[inline(always)]
    pub fn write<T: Plain>(&self, offset: usize, value: T) -> bool {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return false;
        }
        // SAFETY: the comparison proves that the value lies inside of the frame.
        unsafe { store(at as *mut T, value) };
        true
    }
}

/// Types of which any bytes are a value, without padding.
///
/// # Safety
/// Every pattern of bits of this size must be a value of the type.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ty),*) => {
        $(
            // SAFETY: integers and arrays of them.
            unsafe impl Plain for $name {}
        )*
    };
}

plain!(
    u16, u32, u64, [u8; 2], [u8; 4], [u8; 6], [u8; 8], [u8; 12], [u16; 2], [u16; 3], [u16; 4], [u16; 6], [u32; 2],
    [u32; 3], [u32; 4], [u32; 8], [u32; 10], [u64; 8], [u64; 10]
);

// SAFETY: one integer.
unsafe impl Plain for meshd_abi::V4 {}
// SAFETY: an array of integers.
unsafe impl Plain for meshd_abi::V6 {}

/// Packets are not aligned. The verifier allows unaligned access to them where the machine does; telling LLVM so by
/// `read_unaligned` makes it load single bytes.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn load<T: Copy>(at: *const T) -> T {
    unsafe { *at }
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn store<T: Copy>(at: *mut T, value: T) {
    unsafe { *at = value }
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn load<T: Copy>(at: *const T) -> T {
    // SAFETY: the caller proves that the bytes are readable.
    unsafe { at.read_unaligned() }
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn store<T: Copy>(at: *mut T, value: T) {
    // SAFETY: the caller proves that the bytes are writable.
    unsafe { at.write_unaligned(value) }
}
