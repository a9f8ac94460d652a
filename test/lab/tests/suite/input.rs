//! Wrong input on the command line: refused, with the object, the reason and the remedy.
