//! The numerical operations that tune owns: one op, one folder, one scalar oracle.
