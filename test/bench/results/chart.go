package results

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// A chart is one horizontal bar a ratio, on a logarithmic axis around 1, where both
// sides are equal; a whisker is the interval of the median, a tick the mark.
const (
	chartWidth  = 900
	labelWidth  = 330
	valueWidth  = 70
	rowHeight   = 22
	chartTop    = 64
	chartBottom = 24
	chartFloor  = 0.02 // the axis' ends
	chartCeil   = 50
)

// charted are the ratios that the chart shows: throughputs and rates, for which more
// is better.
func charted() []string {
	return []string{
		"same-node-tcp", "same-node-tcp-8", "same-node-udp-64", "same-node-udp-512", "same-node-udp-1380", "same-node-connect",
		"same-node-vs-relay", "same-node-vs-relay-udp-64",
		"encrypted-vs-wireguard-go", "encrypted-vs-wireguard-go-tcp-8", "encrypted-vs-wireguard-go-udp-64", "encrypted-vs-wireguard-go-connect",
		"encrypted-vs-vxlan", "encrypted-vs-vxlan-tcp-8", "jumbo-encrypted-vs-wireguard-go", "jumbo-encrypted-vs-vxlan",
		"vip-vs-direct", "vip-vs-direct-udp-64", "vip-vs-direct-connect",
		"vip-vs-kube-proxy", "vip-vs-kube-proxy-udp-64", "vip-vs-kube-proxy-connect", "node-port-vs-kube-proxy", "node-port-vs-kube-proxy-connect",
		"egress-vs-masquerade", "egress-vs-masquerade-udp-1200", "egress-vs-masquerade-connect", "egress-vs-pasta", "egress-vs-slirp4netns",
	}
}

// WriteChart draws results into an SVG file.
func WriteChart(path string, all []Result) error {
	if err := os.WriteFile(path, []byte(Chart(all)), 0o644); err != nil { //nolint:gosec // a document
		return fmt.Errorf("write the chart: %w", err)
	}
	return nil
}

// Chart draws results.
func Chart(all []Result) string {
	byName := map[string]Result{}
	for _, r := range all {
		byName[r.Name] = r
	}
	var rows []Result
	for _, name := range charted() {
		if r, ok := byName[name]; ok && r.Ratio && r.Value > 0 {
			rows = append(rows, r)
		}
	}
	height := chartTop + len(rows)*rowHeight + chartBottom
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", chartWidth, height)
	b.WriteString(`<text x="12" y="22" font-size="15" font-weight="bold">netctl's throughput and rates as a multiple of what it is compared with</text>` + "\n")
	b.WriteString(`<text x="12" y="40" fill="#555">bar: median of the pairs; line: interval of the median; red tick: the mark</text>` + "\n")
	for _, v := range []float64{0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 50} {
		stroke := "#ddd"
		if v == 1 {
			stroke = "#555"
		}
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%[1]f" y1="%d" y2="%d" stroke="%s"/>`, axis(v), chartTop-6, height-chartBottom, stroke)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#555" font-size="10">%g</text>`+"\n", axis(v), height-8, v)
	}
	for i, r := range rows {
		bar(&b, chartTop+i*rowHeight, r)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// bar draws one row.
func bar(b *strings.Builder, y int, r Result) {
	fill := "#c9772b"
	if r.Value >= 1 {
		fill = "#2b7bba"
	}
	from, to := min(axis(1), axis(r.Value)), max(axis(1), axis(r.Value))
	middle := y + rowHeight/2
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-8, middle+4, html.EscapeString(r.Name))
	fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`, from, y+4, max(to-from, 1), rowHeight-8, fill)
	if r.Pairs > 1 && r.Low > 0 {
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%[3]d" stroke="black"/>`, axis(r.Low), axis(r.High), middle)
	}
	if m, ok := MarkOf(r.Name); ok && m.Unit == "" {
		fmt.Fprintf(b, `<line x1="%.1f" x2="%[1]f" y1="%d" y2="%d" stroke="#c00" stroke-width="2"/>`, axis(m.Limit), y+1, y+rowHeight-1)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", chartWidth-8, middle+4, number(r.Value))
}

// axis is where a ratio is drawn.
func axis(v float64) float64 {
	share := (math.Log(min(max(v, chartFloor), chartCeil)) - math.Log(chartFloor)) / (math.Log(chartCeil) - math.Log(chartFloor))
	return labelWidth + share*(chartWidth-labelWidth-valueWidth)
}
