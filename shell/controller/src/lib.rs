//! The management server: API handlers, authorisation, planning loop.
