//! Who reaches whom: subnet mates and nobody else, over every attachment and encoding.
