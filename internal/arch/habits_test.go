package arch_test

import (
	"go/ast"
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestPackageComments: every package says once what it is, in words that a
// newcomer can use.
func TestPackageComments(t *testing.T) {
	t.Parallel()
	const least = 60 // characters; less than a sentence teaches nothing
	s := mustSource(t)
	for _, name := range slices.Sorted(maps.Keys(s.packages)) {
		var from []string
		for _, f := range s.packages[name].files {
			if f.test || f.ast.Doc == nil {
				continue
			}
			from = append(from, f.path)
			text := f.ast.Doc.Text()
			if f.ast.Name.Name == "main" {
				if !strings.HasPrefix(text, "Command ") {
					t.Errorf("%s: the comment of a program starts with \"Command NAME\"", f.path)
				}
			} else if !strings.HasPrefix(text, "Package "+f.ast.Name.Name+" ") {
				t.Errorf("%s: the package comment starts with \"Package %s\"", f.path, f.ast.Name.Name)
			}
			if len(text) < least {
				t.Errorf("%s: the package comment is too short to teach: what, why here, invariants, how to test", f.path)
			}
		}
		if len(from) != 1 {
			t.Errorf("package %s has %d package comments %v, not one", name, len(from), from)
		}
	}
}

// TestNothingHappensAtImport: no init functions and no imports for their side
// effects. What runs before main is paid by every start of every program, the
// CNI plugin included, and cannot be read from main.
func TestNothingHappensAtImport(t *testing.T) {
	t.Parallel()
	for _, p := range mustSource(t).packages {
		for _, f := range p.files {
			for _, spec := range f.ast.Imports {
				if spec.Name == nil || spec.Path.Value == `"embed"` {
					continue // embed has no side effect; the compiler wants it for //go:embed
				}
				if spec.Name.Name == "_" || spec.Name.Name == "." {
					t.Errorf("%s imports %s as %s", f.path, spec.Path.Value, spec.Name.Name)
				}
			}
			for _, d := range f.ast.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s has an init function: construct in main, pass values", f.path)
				}
			}
		}
	}
}

// TestVnetIsForTests: the cluster in a test must not reach a program.
func TestVnetIsForTests(t *testing.T) {
	t.Parallel()
	doubles := []string{"internal/vnet", "internal/packet/packettest", "overlay/overlaytest"}
	for name, p := range mustSource(t).packages {
		if slices.Contains(doubles, name) {
			continue
		}
		for _, f := range p.files {
			for _, imported := range f.imports {
				if target, ok := internalName(imported); ok && !f.test && slices.Contains(doubles, target) {
					t.Errorf("%s imports %s, which is for tests", f.path, target)
				}
			}
		}
	}
}
