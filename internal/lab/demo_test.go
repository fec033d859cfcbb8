package lab

import (
	"strings"
	"testing"
)

func TestDemo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
	}{
		{"ipv4", nil},
		{"ipv6", []string{"--ipv6"}},
		{"dual stack", []string{"--dual-stack"}},
		{"nodes claim their blocks", []string{"--claim-blocks"}},
		{"dual stack, nodes claim their blocks", []string{"--claim-blocks", "--dual-stack", "--nodes=2"}},
		{"packets to the outside", []string{"--dual-stack", "--egress=packets"}},
		{"one node", []string{"--nodes=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			turn(t)
			root, name := rootDir(t), labNameFor(t)
			code, out, errs := execute(t.Context(), released, root, append([]string{"lab", "demo", "--name", name}, c.args...)...)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			last := lines[len(lines)-1]
			if code != 0 || !strings.HasPrefix(last, "demo: ") || !strings.HasSuffix(last, " checks passed") {
				t.Errorf("exit code %d, last line %q\n%s%s", code, last, out, errs)
			}
			if strings.Count(out, "\nok    ") < 30 {
				t.Errorf("only %d checks:\n%s", strings.Count(out, "\nok    "), out)
			}
			checkNothingLeft(t, name, root)
		})
	}
}
