package cluster

import (
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

func TestConvertBandwidth(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		ingress, egress string // "-": absent
		want            model.Bandwidth
		invalid         []string // words of what is said
	}{
		{"none", "-", "-", model.Bandwidth{}, nil},
		{"decimal", "10M", "1G", model.Bandwidth{Ingress: 10e6, Egress: 1e9}, nil},
		{"binary", "1Ki", "1Gi", model.Bandwidth{Ingress: 1024, Egress: 1 << 30}, nil},
		{"exponent", "1e6", "-", model.Bandwidth{Ingress: 1e6}, nil},
		{"a part of a bit is one", "1000.5", "-", model.Bandwidth{Ingress: 1001}, nil},
		{"the least", "1k", "-", model.Bandwidth{Ingress: 1000}, nil},
		{"the most", "-", "1P", model.Bandwidth{Egress: 1e15}, nil},
		{"too little", "999", "10M", model.Bandwidth{Egress: 10e6}, []string{"kubernetes.io/ingress-bandwidth", `"999"`, "at least 1k"}},
		{"milli", "100m", "-", model.Bandwidth{}, []string{`"100m"`, "small"}},
		{"too much", "-", "2P", model.Bandwidth{}, []string{"kubernetes.io/egress-bandwidth", `"2P"`, "at most 1P"}},
		{"far too much", "-", "1e40", model.Bandwidth{}, []string{"large"}},
		{"negative", "-5M", "-", model.Bandwidth{}, []string{"small"}},
		{"zero", "0", "-", model.Bandwidth{}, []string{"small"}},
		{"empty", "", "-", model.Bandwidth{}, []string{`""`, "no quantity"}},
		{"words", "fast", "10 Mbit", model.Bandwidth{}, []string{`"fast"`, `"10 Mbit"`}},
		{"long", strings.Repeat("9", 1000), "-", model.Bandwidth{}, []string{"no quantity"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			annotations := map[string]string{"other": "x"}
			if c.ingress != "-" {
				annotations[annotationIngress] = c.ingress
			}
			if c.egress != "-" {
				annotations[annotationEgress] = c.egress
			}
			got := convertBandwidth(annotations)
			for _, w := range c.invalid {
				if !strings.Contains(got.Invalid, w) {
					t.Errorf("said is %q, without %q", got.Invalid, w)
				}
			}
			if len(c.invalid) == 0 && got.Invalid != "" || len(got.Invalid) > 400 {
				t.Errorf("said is %q", got.Invalid)
			}
			got.Invalid = ""
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// Whatever is written there, a limit is one that Kubernetes allows.
func FuzzParseBandwidth(f *testing.F) {
	for _, text := range []string{"10M", "1Ki", "1e6", "-1", "", "1P", "0.1E", "1e-3k", "99999999999999999999"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rate, err := parseBandwidth(text)
		if (err == nil) != (rate != 0) || err == nil && (rate < minBandwidth || rate > maxBandwidth) {
			t.Errorf("%q is %d, %v", text, rate, err)
		}
	})
}
