package results

import "fmt"

// Mark is what a figure has to reach.
type Mark struct {
	Name  string // of the figure
	Least bool   // it is to be at least Limit, else at most
	Limit float64
	Unit  string // of Limit, "" for a ratio
	// Within has the mark be met when it lies inside the interval.
	Within bool
}

// marks lists all of them, in the order of the table.
var marks = []Mark{
	{Name: "same-node-tcp", Least: true, Limit: 0.8},
	{Name: "same-node-tcp-carriers", Limit: 0.6, Unit: "ns/byte"},
	{Name: "same-node-ask-p50", Limit: 1.6},
	{Name: "same-node-udp-64-per-core", Least: true, Limit: 0.25, Unit: "Mpps"},
	{Name: "encrypted-vs-wireguard-go", Least: true, Limit: 1.5},
	{Name: "encrypted-vs-wireguard-go-carriers", Limit: 0.7},
	{Name: "encrypted-vs-wireguard-go-cpu", Limit: 0.7},
}

// MarkOf returns the mark of a figure.
func MarkOf(name string) (Mark, bool) {
	for _, m := range marks {
		if m.Name == name {
			return m, true
		}
	}
	return Mark{}, false
}

func (m Mark) String() string {
	sign := "<="
	if m.Least {
		sign = ">="
	}
	if m.Unit == "" {
		return fmt.Sprintf("%s %g", sign, m.Limit)
	}
	return fmt.Sprintf("%s %g %s", sign, m.Limit, m.Unit)
}

// Judge says whether a result has reached its mark.
func (m Mark) Judge(r Result) string {
	v := r.Value
	if m.Unit != "" && r.Ratio {
		v = r.Ours
	}
	if m.Within && m.Least {
		v = r.High
	} else if m.Within {
		v = r.Low
	}
	if m.Least && v >= m.Limit || !m.Least && v <= m.Limit {
		return "met"
	}
	return "missed"
}
