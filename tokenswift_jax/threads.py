"""Names of threads, by which one part of the program knows those of another."""

COMPILING = "tokenswift-compile"  # begins the names of threads that compile beside decoding
