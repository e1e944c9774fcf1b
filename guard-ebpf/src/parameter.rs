//! Constants that the agent writes into the instructions.

/// A constant of this copy of the program.
///
/// Every meter has a copy of its own, in which the agent has put the value in the placeholder's place: known to the
/// verifier, which removes what it makes unreachable, and no lookup for the packet.
#[macro_export]
macro_rules! parameter {
    ($index:expr) => {{
        let value: u64;
        // SAFETY: loads a constant into a register, nothing else.
        unsafe {
            core::arch::asm!(
                "{value} = {placeholder} ll",
                value = out(reg) value,
                placeholder = const guard_common::parameter::placeholder($index),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        value
    }};
}
