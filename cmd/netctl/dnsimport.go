package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/dns/corefile"
)

// maxCorefile bounds what is read of one.
const maxCorefile = 1 << 20

func newDNSImport(io streams) *cobra.Command {
	var ignore []string
	cmd := &cobra.Command{
		Use:   "import-corefile [FILE]",
		Short: "Turn CoreDNS' configuration into options of netctl's name server",
		Long: `Turn CoreDNS' configuration into options of netctl's name server. The options go to
standard output, for 'netctl dns --options' and the agent's dnsOptions; what became of
every line goes to standard error. A line that cannot be taken over is named, and
without --ignore for its plugin the exit code is 1.`,
		Example: `  kubectl -n kube-system get configmap coredns -o jsonpath='{.data.Corefile}' | netctl dns import-corefile > dns.yaml
  netctl dns import-corefile Corefile --ignore template,dnssec`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return importCorefile(io, args, ignore) },
	}
	cmd.Flags().StringSliceVar(&ignore, "ignore", nil, "plugins whose lines need not be taken over")
	return cmd
}

func importCorefile(std streams, args, ignore []string) error {
	in := std.in
	if len(args) > 0 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxCorefile+1))
	if err != nil {
		return fmt.Errorf("read the Corefile: %w", err)
	}
	r, err := corefile.Import(string(text))
	if err != nil {
		return err
	}
	data, err := r.Options.Encode()
	if err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintln(std.err, n)
	}
	if len(r.Flags) > 0 {
		fmt.Fprintln(std.err, "'netctl dns' wants these flags:", strings.Join(r.Flags, " "))
	}
	if _, err := std.out.Write(data); err != nil {
		return err
	}
	if n := len(r.Refused(ignore)); n > 0 {
		return errors.New(fmt.Sprint(n, " lines could not be taken over; --ignore PLUGIN accepts that"))
	}
	return nil
}
