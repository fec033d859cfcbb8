// Package balance gives Services of type LoadBalancer their addresses, where no cloud
// does, and says which node is to answer for one.
//
// Everything here is a pure function of what the cluster says, so that every node
// comes to the same answer without asking another: no leader, no lease per service.
// What is written down once (a Service's status) counts more than what anybody would
// choose today; so two nodes that saw different states for a moment end in agreement.
//
// Files: pool.go (which addresses there are), assign.go (whose they are), rank.go
// (who answers).
package balance
