package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// suite is a choice of upstream's end-to-end specs.
type suite struct {
	focus, skip string
	procs       int
	reports     string // where reports go
	section     string // of the document that gets the result table
	document    string
	limit       time.Duration
}

const (
	conformanceFocus = `\[sig-network\].*\[Conformance\]`

	// smokeFocus is a dozen conformance specs, at least one for each thing that a
	// cluster network does: pods to pods and nodes, TCP and UDP, services by
	// address and name, node ports, affinity, host ports, the API server's proxy.
	smokeFocus = `\[sig-network\] (DNS should provide DNS for (services|ExternalName services|pods for Hostname)` +
		`|DNS should support configurable pod DNS nameservers` +
		`|Networking Granular Checks: Pods should function for (intra-pod communication: http|node-pod communication: udp)` +
		`|Services should (serve multiport endpoints from pods|serve endpoints on same port and different protocols` +
		`|be able to create a functioning NodePort service|have session affinity work for NodePort service` +
		`|be able to change the type from ExternalName to NodePort)` +
		`|EndpointSlice should support a Service with multiple ports specified` +
		`|Proxy version v1 should proxy through a service and a pod` +
		`|HostPort validates).*\[Conformance\]`
)

func (s *settings) e2eCommand() *cobra.Command {
	e := suite{}
	smoke := false
	c := &cobra.Command{Use: "e2e", Short: "run Kubernetes' own end-to-end specs on the cluster", Args: cobra.NoArgs}
	f := c.Flags()
	f.StringVar(&e.focus, "focus", conformanceFocus, "which specs, a regular expression")
	f.StringVar(&e.skip, "skip", "", "which of them not")
	f.BoolVar(&smoke, "smoke", false, "a representative dozen instead of --focus")
	f.IntVar(&e.procs, "procs", 3, "how many at once")
	f.StringVar(&e.reports, "reports", "dist/e2e", "the directory of the reports: JUnit, JSON, the whole log, a Markdown table")
	f.StringVar(&e.document, "document", "", "a Markdown file whose section of results is replaced")
	f.StringVar(&e.section, "section", "conformance", "which section of --document: what stands between <!-- results: NAME --> and <!-- end -->")
	f.DurationVar(&e.limit, "limit", 2*time.Hour, "end all after that time")
	return s.with(c, 4*time.Hour, func(w *work) error {
		if smoke {
			e.focus = smokeFocus
		}
		if err := w.load(); err != nil {
			return err
		}
		if err := w.cache.Build(w.ctx, true); err != nil {
			return err
		}
		return w.e2e(w.ctx, e)
	})
}

// e2e runs a suite and fails unless something ran and all of it passed.
func (c *Cluster) e2e(ctx context.Context, e suite) error {
	if err := c.readyForE2E(ctx); err != nil {
		return err
	}
	dir, err := filepath.Abs(e.reports)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the reports' directory: %w", err)
	}
	for _, old := range []string{"report.json", "junit.xml", "table.md"} {
		_ = os.Remove(filepath.Join(dir, old)) // so that an old result is not taken for this one
	}
	log, err := os.Create(filepath.Join(dir, "e2e.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	args := e.command(dir, c.cache.Bin(), c.path("kubeconfig"), c.options.Nodes)
	cmd := c.outsideCommand(ctx, args...)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = io.MultiWriter(log, w), log
	told := make(chan struct{})
	go func() {
		defer close(told)
		c.tell(r)
	}()
	c.say("run %s, %d at once; the log is %s", e.focus, e.procs, log.Name())
	runErr := cmd.Run()
	_ = w.Close() // never fails
	<-told
	results, err := readResults(filepath.Join(dir, "report.json"))
	if err != nil {
		return errors.Join(runErr, fmt.Errorf("%w; see %s", err, log.Name()))
	}
	table := results.table(e)
	if err := os.WriteFile(filepath.Join(dir, "table.md"), []byte(table), 0o644); err != nil { //nolint:gosec // a report
		return err
	}
	if e.document != "" {
		if err := replaceSection(e.document, e.section, table); err != nil {
			return err
		}
	}
	c.say("%s", results.summary())
	if bad := results.bad(); bad != nil {
		return fmt.Errorf("%w; see %s", bad, log.Name())
	}
	return runErr
}

// command is the command line, with paths of this machine. The number of nodes is
// told because only the first of several processes finds it out by itself, and
// in the others the specs that need two would skip themselves.
func (e suite) command(dir, bin, kubeconfig string, nodes int) []string {
	args := []string{
		"ginkgo", "--no-color", "-v", fmt.Sprintf("--procs=%d", e.procs), "--timeout=" + e.limit.String(),
		"--focus=" + e.focus,
	}
	if e.skip != "" {
		args = append(args, "--skip="+e.skip)
	}
	return append(args,
		"--output-dir="+dir, "--json-report=report.json", "--junit-report=junit.xml",
		filepath.Join(bin, "e2e.test"), "--",
		"--kubeconfig="+kubeconfig, "--kubectl-path="+filepath.Join(bin, "kubectl"),
		"--provider=skeleton", "--disable-log-dump", fmt.Sprintf("--num-nodes=%d", nodes))
}

// readyForE2E waits for what the suite waits for too, but says what is missing.
func (c *Cluster) readyForE2E(ctx context.Context) error {
	if err := c.awaitReady(ctx); err != nil {
		return err
	}
	_, err := c.kubectl(ctx, "wait", "pod", "--all", "-n", "kube-system", "--for=condition=Ready", "--timeout=120s", "--request-timeout=0")
	if err != nil {
		return fmt.Errorf("not every pod of kube-system is Ready: %w", err)
	}
	return nil
}

// specEnd is the first line of what ginkgo says of a spec that ended.
var specEnd = regexp.MustCompile(`^• (\[[A-Z ]+\] )?\[([0-9.]+ seconds)\]`)

// labels follow a spec's name.
var labels = regexp.MustCompile(` \[sig-[a-z-]+(, [^\]]*)?\]$`)

// tell prints a line for every spec that ended: ginkgo's verbose output has its
// time first and its name on the next line.
func (c *Cluster) tell(r io.Reader) {
	in := bufio.NewReader(r)
	verdict := ""
	for {
		line, err := in.ReadString('\n')
		if m := specEnd.FindStringSubmatch(line); m != nil {
			verdict = fmt.Sprintf("%-9s %s", strings.Trim(strings.TrimSpace(m[1]), "[]"), m[2])
			if m[1] == "" {
				verdict = fmt.Sprintf("%-9s %s", "ok", m[2])
			}
		} else if verdict != "" && strings.Contains(line, "[sig-") {
			c.say("%-24s %s", verdict, labels.ReplaceAllString(strings.TrimSpace(line), ""))
			verdict = ""
		}
		if err != nil {
			return
		}
	}
}
