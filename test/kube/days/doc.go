// Package days tests what must be survived: each bad day happens to a running
// cluster of test/kube, states what has to be true throughout and afterwards, and
// proves it by real traffic and by the books of every node.
//
//	make kube-days                  # all of them, on a cluster made for it
//	make kube-days DAY=ci           # the selection of continuous integration
//	make kube-days DAY='api|reboot' # those whose name matches
//
// After every day the books must balance (books_test.go): API server, agents'
// records, address pools, namespaces and TUNs of all nodes tell the same story,
// and every pod is reached from everywhere. The days are in days_*_test.go by what
// breaks; probe_test.go is the traffic that goes on meanwhile, sent from inside
// pods' networks without the help of anything that a day may break.
//
// Environment, which the Makefile's target sets: NETCTL_DAYS names the days,
// without it nothing runs; NETCTL_DAYS_NAME names the cluster, which is used as it
// is when it is up; NETCTL_DAYS_KEEP leaves it up; NETCTL_DAYS_MODE is blocks or
// podcidrs when only one of the two ways to pod addresses matters.
package days
