//! Instruction sets: what the machine can do, what is used, and plain loops compiled once for each.
//!
//! The best set of the machine is used unless a caller asks for another ([`InstructionSet::run`]); parity tests run
//! every op on every set that the machine has.

use std::cell::Cell;
use std::sync::OnceLock;

/// What the fast paths are written for, from the plainest up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstructionSet {
    /// Plain Rust: whatever the target guarantees (SSE2 on x86-64).
    Portable,
    /// aarch64's vectors.
    Neon,
    /// x86-64 with AVX2, FMA and half-precision conversions.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with BF16 products (`vdpbf16ps`) and VBMI.
    Avx512Bf16,
}

impl InstructionSet {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            _ => x86_has(self),
        }
    }

    /// The best of this machine.
    pub fn best() -> Self {
        static BEST: OnceLock<InstructionSet> = OnceLock::new();
        *BEST.get_or_init(|| {
            let available = Self::ALL.into_iter().rev().find(|set| set.is_available());
            available.unwrap_or(Self::Portable)
        })
    }

    /// The set in use on this thread: the best, unless inside [`Self::run`].
    #[inline]
    pub fn current() -> Self {
        FORCED.get().unwrap_or_else(Self::best)
    }

    /// Runs `body` with every op on this set, in the threads that the ops fork to as well.
    ///
    /// # Errors
    /// [`Unavailable`] if the machine does not have it; `body` is then not run.
    pub fn run<R>(self, body: impl FnOnce() -> R) -> Result<R, Unavailable> {
        if !self.is_available() {
            return Err(Unavailable(self));
        }
        Ok(scoped(Some(self), body))
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "NEON",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Bf16 => "AVX-512 with BF16",
        }
    }

    /// Whether bf16 products run on bf16 units, twice as fast as f32 or faster.
    pub fn multiplies_bf16(self) -> bool {
        self == Self::Avx512Bf16
    }
}

impl std::fmt::Display for InstructionSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// An instruction set that this machine does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this machine does not have {0}")]
pub struct Unavailable(pub InstructionSet);

thread_local! {
    static FORCED: Cell<Option<InstructionSet>> = const { Cell::new(None) };
}

/// What [`scoped`] hands from the thread that forks to the threads that work.
pub(crate) fn forced() -> Option<InstructionSet> {
    FORCED.get()
}

/// Runs `body` with `set` forced on this thread, and restores the previous one, even on a panic.
pub(crate) fn scoped<R>(set: Option<InstructionSet>, body: impl FnOnce() -> R) -> R {
    struct Restore(Option<InstructionSet>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(set));
    body()
}

#[cfg(target_arch = "x86_64")]
fn x86_has(set: InstructionSet) -> bool {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match set {
        InstructionSet::Avx2 => avx2,
        InstructionSet::Avx512 => avx2 && avx512,
        InstructionSet::Avx512Bf16 => {
            avx2 && avx512 && is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vbmi")
        }
        InstructionSet::Portable | InstructionSet::Neon => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_has(_: InstructionSet) -> bool {
    false
}

/// Defines functions whose bodies are compiled for each instruction set and dispatched at run time.
///
/// Rust never contracts `a * b + c` nor reorders floating-point sums, so every set gives the same bits.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($generic:ident : $bound:path),+>)? ($($argument:ident : $type:ty),* $(,)?) $(-> $result:ty)? $body:block)+) => {$(
        $(#[$meta])*
        $vis fn $name $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
                body$(::<$($generic),+>)?($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
                body$(::<$($generic),+>)?($($argument),*)
            }
            match $crate::cpu::isa::InstructionSet::current() {
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::InstructionSet::Avx512 | $crate::cpu::isa::InstructionSet::Avx512Bf16 => {
                    // SAFETY: the current set is available: this machine has these features.
                    unsafe { avx512$(::<$($generic),+>)?($($argument),*) }
                }
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::InstructionSet::Avx2 => unsafe { avx2$(::<$($generic),+>)?($($argument),*) },
                _ => body$(::<$($generic),+>)?($($argument),*),
            }
        }
    )+};
}
pub(crate) use vectorized;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_set_holds_inside_and_not_after() {
        let inside = InstructionSet::Portable.run(InstructionSet::current);
        assert_eq!(inside, Ok(InstructionSet::Portable));
        assert_eq!(InstructionSet::current(), InstructionSet::best());
        let caught = std::panic::catch_unwind(|| InstructionSet::Portable.run(|| panic!("inside")));
        assert!(caught.is_err());
        assert_eq!(InstructionSet::current(), InstructionSet::best());
    }

    #[test]
    fn a_set_of_another_machine_is_refused() {
        let foreign = if cfg!(target_arch = "aarch64") { InstructionSet::Avx2 } else { InstructionSet::Neon };
        assert_eq!(foreign.run(|| ()), Err(Unavailable(foreign)));
    }
}
