// Package arch holds the tests of the project's shape: which package may import
// which, which package is the door to which library, how large things may grow,
// and what every package and document must have.
//
// A rule in a document is forgotten; a rule in a test is not. So each limit of
// docs/architecture.md stands here as a number or as a row of a table with its
// reason, and the test prints that reason when the rule is broken. An exception
// is a row too: it is visible in review and argued for once.
//
// Everything is denied by default. A new package needs a row in imports_test.go
// and a line in docs/architecture.md; a new library needs a row in doors_test.go.
// Rows may not outlive what they speak of: a row for a package that is gone, or
// a permission that nobody uses, fails too.
//
// The package has no code of its own. Its tests read the source tree with
// go/parser; they need neither the network nor the go command.
package arch
