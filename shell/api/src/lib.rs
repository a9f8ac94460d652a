//! The only gRPC: generated code, conversions at the edge, TLS, clients.
