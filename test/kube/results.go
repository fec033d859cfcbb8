package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// result is one spec in ginkgo's JSON report, as far as it is read here.
type result struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	NumAttempts             int
	Failure                 struct{ Message string }
}

func (r result) name() string {
	return strings.Join(append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText), " ")
}

// results are the specs that were chosen: run, or skipped by themselves.
type results struct {
	specs []result
	setup []result // what failed around them
}

func readResults(path string) (results, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return results{}, fmt.Errorf("no report: %w", err)
	}
	var reports []struct{ SpecReports []result }
	if err := json.Unmarshal(data, &reports); err != nil {
		return results{}, fmt.Errorf("read the report: %w", err)
	}
	var out results
	for _, report := range reports {
		for _, spec := range report.SpecReports {
			switch {
			case spec.LeafNodeType != "It":
				if spec.State != "passed" && spec.State != "" {
					out.setup = append(out.setup, spec)
				}
			case spec.State == "skipped" && spec.Failure.Message == "", spec.State == "pending":
				// not chosen
			default:
				out.specs = append(out.specs, spec)
			}
		}
	}
	slices.SortFunc(out.specs, func(a, b result) int { return strings.Compare(a.name(), b.name()) })
	return out, nil
}

func (r results) count(state string) int {
	n := 0
	for _, s := range r.specs {
		if s.State == state {
			n++
		}
	}
	return n
}

func (r results) summary() string {
	passed, skipped := r.count("passed"), r.count("skipped")
	return fmt.Sprintf("e2e: %d passed, %d failed, %d skipped themselves", passed, len(r.specs)-passed-skipped, skipped)
}

// bad says what did not pass.
func (r results) bad() error {
	var errs []error
	for _, s := range slices.Concat(r.setup, r.specs) {
		if s.State != "passed" {
			errs = append(errs, fmt.Errorf("%s: %s: %s", s.State, s.name(), firstLine(s.Failure.Message)))
		}
	}
	if len(r.specs) == 0 {
		errs = append(errs, errors.New("no spec ran: nothing matches the focus"))
	}
	return errors.Join(errs...)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

// table renders the results for a document.
func (r results) table(e suite) string {
	var out strings.Builder
	fmt.Fprintf(&out, "`make e2e FOCUS='%s'`", e.focus)
	if e.skip != "" {
		fmt.Fprintf(&out, " with `SKIP='%s'`", e.skip)
	}
	fmt.Fprintf(&out, ": %s.\n\n| spec | result | seconds |\n|---|---|--:|\n", strings.TrimPrefix(r.summary(), "e2e: "))
	for _, s := range r.specs {
		state := s.State
		if s.State != "passed" {
			state += ": " + firstLine(s.Failure.Message)
		} else if s.NumAttempts > 1 {
			state += fmt.Sprintf(" at attempt %d", s.NumAttempts)
		}
		fmt.Fprintf(&out, "| %s | %s | %.0f |\n", escape(s.name()), escape(state), s.RunTime.Seconds())
	}
	return out.String()
}

func escape(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// replaceSection puts text between the marks of a section.
func replaceSection(path, section, text string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- results: "+section+" -->\n", "<!-- end -->"
	before, rest, ok := strings.Cut(string(data), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no section between %q and %q", path, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(path, []byte(before+begin+text+end+after), 0o644) //nolint:gosec // a document
}
