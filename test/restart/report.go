package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/test/figures"
	"github.com/netctl/netctl/test/restart/agents"
	"github.com/netctl/netctl/test/restart/load"
)

// report is what a run has seen.
type report struct {
	options       options
	results       []*result
	before, after agents.Weight
}

// result is what one kind of disturbance was to the loads.
type result struct {
	kind  string
	long  bool
	times int
	loads map[string]*seen
}

// seen is what one load has seen of one kind.
type seen struct {
	load.Counts

	gaps []time.Duration // the longest silence of each time
}

func (res *result) add(name string, c load.Counts) {
	s := res.loads[name]
	if s == nil {
		s = &seen{}
		res.loads[name] = s
	}
	s.Add(c)
	s.gaps = append(s.gaps, c.Gap)
}

// measure is a line of the table: a number of one load.
type measure struct {
	load, name string // as a figure's
	title      string
	unit       string
	value      func(*seen) float64
	zero       bool // anything else is a failure
}

// measures are what is said of every kind.
func measures() []measure {
	count := func(of func(*seen) int) func(*seen) float64 { return func(s *seen) float64 { return float64(of(s)) } }
	gap := func(q float64) func(*seen) float64 {
		return func(s *seen) float64 { return figures.MS(figures.Quantile(s.gaps, q)) }
	}
	sent := count(func(s *seen) int { return s.Sent })
	lost := count(func(s *seen) int { return s.Lost })
	resets := count(func(s *seen) int { return s.Resets })
	wrong := count(func(s *seen) int { return s.Wrong })
	failed := count(func(s *seen) int { return s.Failed })
	each := func(s *seen) float64 { return float64(s.Lost) / float64(len(s.gaps)) }
	share := func(of func(*seen) int) func(*seen) float64 {
		return func(s *seen) float64 { return 100 * float64(of(s)) / float64(max(1, s.Sent)) }
	}
	return []measure{
		{"udp", "gap-p50", "UDP: longest silence, median", "ms", gap(0.5), false},
		{"udp", "gap-max", "… longest of all", "ms", gap(1), false},
		{"udp", "sent", "… packets", "", sent, false},
		{"udp", "lost", "… lost", "", lost, false},
		{"udp", "duplicates", "… duplicates", "", count(func(s *seen) int { return s.Duplicates }), false},
		{"udp", "reordered", "… reordered", "", count(func(s *seen) int { return s.Reordered }), false},
		{"udp", "wrong", "… at a wrong backend", "", wrong, true},
		{"bulk", "bytes", "TCP streams: delivered", "MB", func(s *seen) float64 { return float64(s.Sent) / 1e6 }, false},
		{"bulk", "broken", "… reset or broken", "", lost, true},
		{"bulk", "wrong", "… with wrong bytes", "", wrong, true},
		{"bulk", "gap-p50", "… longest stall, median", "ms", gap(0.5), false},
		{"bulk", "gap-max", "… longest of all", "ms", gap(1), false},
		{"iperf3", "bytes", "iperf3: delivered", "MB", func(s *seen) float64 { return float64(s.Sent) / 1e6 }, false},
		{"iperf3", "broken", "… ended with an error", "", lost, true},
		{"iperf3", "silent", "… tenths of a second without a byte", "", count(func(s *seen) int { return s.Silent }), false},
		{"iperf3", "gap-max", "… most of them in a row", "ms", gap(1), false},
		{"iperf3", "again", "… segments sent again", "", count(func(s *seen) int { return s.Again }), false},
		{"idle", "open", "Idle TCP connections", "", sent, false},
		{"idle", "lost", "… lost", "", lost, true},
		{"idle", "resets", "… of these, reset", "", resets, true},
		{"idle", "wrong", "… at a wrong backend", "", wrong, true},
		{"new", "opened", "New TCP connections", "", sent, false},
		{"new", "slow", "… that took over 1 s", "%", share(func(s *seen) int { return s.Slow }), false},
		{"new", "failed", "… that failed", "", failed, false},
		{"new", "resets", "… that were refused or reset", "", resets, true},
		{"loyal", "opened", "New connections by Services with affinity", "", sent, false},
		{"loyal", "failed", "… that failed", "", failed, false},
		{"loyal", "wrong", "… at another backend than the first", "", wrong, true},
		{"dns", "asked", "DNS: questions", "", sent, false},
		{"dns", "lost", "… without an answer", "", lost, false},
		{"dns", "failed", "… with an error", "", failed, false},
		{"dns", "gap-p50", "… longest silence, median", "ms", gap(0.5), false},
		{"dns", "gap-max", "… longest of all", "ms", gap(1), false},
		{"host", "broken", "Node processes' TCP connections: broken", "", lost, true},
		{"host", "gap-p50", "… longest silence, median", "ms", gap(0.5), false},
		{"host", "gap-max", "… longest of all", "ms", gap(1), false},
		{"egress", "broken", "Connections to outside: broken each time", "", each, false},
		{"egress", "gap-p50", "… longest silence, median", "ms", gap(0.5), false},
		{"egress", "gap-max", "… longest of all", "ms", gap(1), false},
		{"nodeport", "broken", "NodePort connections: broken each time", "", each, false},
		{"nodeport", "gap-p50", "… longest silence, median", "ms", gap(0.5), false},
		{"nodeport", "gap-max", "… longest of all", "ms", gap(1), false},
		{"liveness", "failed", "Failed probes of a strict pod", "", failed, false},
		{"liveness", "restarts", "… restarts of it", "", lost, true},
	}
}

// examples are the first errors of each kind and load.
func (r *report) examples(w io.Writer) {
	for _, res := range r.results {
		for _, name := range slices.Sorted(maps.Keys(res.loads)) {
			if s := res.loads[name]; s.Example != "" {
				fmt.Fprintf(w, "restart: %s, %s, for example: %s\n", res.kind, name, s.Example)
			}
		}
	}
}

// print prints all figures, and then the table.
func (r *report) print(w io.Writer) {
	for _, res := range r.results {
		fmt.Fprintf(w, "figure restart-%s-times %d\n", res.kind, res.times)
		for _, m := range measures() {
			if s := res.loads[m.load]; s != nil {
				fmt.Fprintln(w, strings.TrimSpace(fmt.Sprintf("figure restart-%s-%s-%s %s %s", res.kind, m.load, m.name, figures.Number(m.value(s)), m.unit)))
			}
		}
	}
	for _, p := range r.before.Parts() {
		fmt.Fprintf(w, "figure restart-agents-%s-before %s\n", p.Name, figures.Number(p.Value))
	}
	for _, p := range r.after.Parts() {
		fmt.Fprintf(w, "figure restart-agents-%s-after %s\n", p.Name, figures.Number(p.Value))
	}
	if fmt.Fprintln(w); r.options.markdown {
		r.markdown(w)
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range r.rows() {
		fmt.Fprintln(t, strings.Join(row, "\t")+"\t")
	}
	_ = t.Flush() // as good as w is
}

// markdown prints the table as it stands in a document.
func (r *report) markdown(w io.Writer) {
	for i, row := range r.rows() {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(w, "|---%s|\n", strings.Repeat("|---:", len(row)-1))
		}
	}
}

// rows is the table: a line for each measure, a column for each kind.
func (r *report) rows() [][]string {
	head := []string{""}
	for _, res := range r.results {
		head = append(head, fmt.Sprintf("%s ×%d", res.kind, res.times))
	}
	out := [][]string{head}
	for _, m := range measures() {
		title := m.title
		if m.unit != "" {
			title += ", " + m.unit
		}
		row, any := []string{title}, false
		for _, res := range r.results {
			cell := ""
			if s := res.loads[m.load]; s != nil {
				cell, any = figures.Number(m.value(s)), true
			}
			row = append(row, cell)
		}
		if any {
			out = append(out, row)
		}
	}
	return out
}

// verdict returns an error for all that must not have happened.
func (r *report) verdict() error {
	var errs []error
	for _, res := range r.results {
		for _, m := range measures() {
			s := res.loads[m.load]
			forwarded := m.load == "egress" && m.name == "broken" && r.options.egress == settings.EgressPackets
			if s == nil || !m.zero && !forwarded || m.value(s) == 0 || m.load == "liveness" && res.long {
				continue
			}
			err := fmt.Errorf("FAILED %s: %s-%s is %s and has to be 0", res.kind, m.load, m.name, figures.Number(m.value(s)))
			if s.Example != "" {
				err = fmt.Errorf("%w: %s", err, s.Example)
			}
			errs = append(errs, err)
		}
	}
	for _, g := range r.before.Growth(&r.after) {
		errs = append(errs, fmt.Errorf("FAILED growth: %s", g))
	}
	return errors.Join(errs...)
}
