package results

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// The lines of a document between which its tables are.
const (
	beginMark = "<!-- begin: make bench-net -->"
	endMark   = "<!-- end: make bench-net -->"
)

// WriteDocument puts results into a Markdown document, between two lines that it has.
func WriteDocument(path, conditions string, all []Result) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write the results' tables: %w", err)
	}
	before, rest, ok := bytes.Cut(data, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return fmt.Errorf("write the results' tables: %s does not have the lines %q and %q", path, beginMark, endMark)
	}
	text := fmt.Sprintf("%s%s\n\n%s\n\n%s\n%s%s%s", before, beginMark, conditions, Marks(all), Tables(all), endMark, after)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // a document
		return fmt.Errorf("write the results' tables: %w", err)
	}
	return nil
}

// Marks is the table of the marks and what has reached them.
func Marks(all []Result) string {
	var b strings.Builder
	b.WriteString("| what | line | mark | value | |\n|---|---|---|---|---|\n")
	for _, m := range marks() {
		value, verdict := "not measured", ""
		for _, r := range all {
			if r.Name == m.Name && !r.Unmarked {
				value, verdict = cell(r), m.Judge(r)
			}
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s |\n", m.What, m.Name, m, value, verdict)
	}
	return b.String()
}

// cell is a result's value with its interval, in the mark's unit.
func cell(r Result) string {
	m, ok := MarkOf(r.Name)
	switch {
	case r.Ratio && ok && m.Unit != "":
		return fmt.Sprintf("%s %s, theirs %s", number(r.Ours), r.Unit, number(r.Theirs))
	case r.Ratio:
		return fmt.Sprintf("%s (%s to %s)", number(r.Value), number(r.Low), number(r.High))
	case r.Pairs > 1:
		return fmt.Sprintf("%s %s (%s to %s)", number(r.Value), r.Unit, number(r.Low), number(r.High))
	default:
		return number(r.Value) + " " + r.Unit
	}
}

// Tables are all ratios, and all figures.
func Tables(all []Result) string {
	var ratios, figures strings.Builder
	ratios.WriteString("| ratio | value (interval of the median) | ours | theirs | unit | pairs |\n|---|---|---|---|---|---|\n")
	figures.WriteString("| figure | value | unit |\n|---|---|---|\n")
	for _, r := range all {
		if r.Ratio {
			fmt.Fprintf(&ratios, "| `%s` | %s (%s to %s) | %s | %s | %s | %d |\n",
				r.Name, number(r.Value), number(r.Low), number(r.High), number(r.Ours), number(r.Theirs), r.Unit, r.Pairs)
		} else {
			fmt.Fprintf(&figures, "| `%s` | %s | %s |\n", r.Name, number(r.Value), r.Unit)
		}
	}
	return "<details><summary>All ratios</summary>\n\n" + ratios.String() + "\n</details>\n\n<details><summary>All figures</summary>\n\n" + figures.String() + "\n</details>\n"
}

// number prints three digits that matter, and no exponent.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
