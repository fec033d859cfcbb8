// Command dns measures netctl's name server against CoreDNS with kubeadm's chain of
// plugins, both answering for the same cluster in the same run. Its tests compare
// what the two answer.
//
//	testdata/cluster ──┬── as a State ──▶ dns.Server ──┐
//	                   └── API server ──▶ CoreDNS    ──┴── the same questions
//
// CoreDNS is built from its Go module in the directory coredns, a module of its own,
// so that none of it is in ours. Its kubernetes plugin reads from an API server in
// this process, as little of one as it needs.
//
// Run it with 'make bench-dns'; 'make dns-diff' is the comparison of the answers.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench-dns:", err)
		os.Exit(1) //nolint:gocritic // the context ends with the process
	}
}
