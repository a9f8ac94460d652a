//! What tests share: golden scripts, waiting for a state, captured errors.
