//! Property tests of the connection core.
