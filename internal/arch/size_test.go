package arch_test

import (
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The limits. Lines are lines of code: blank lines and comments are free, since
// nobody should save them. Tests are exempt.
const (
	maxFile         = 500
	maxPackage      = 1500
	maxFunction     = 80
	maxMethods      = 5
	maxDependencies = 20
)

// big is a package that may be larger than maxPackage, and why it is not two.
type big struct {
	lines  int
	reason string
}

var bigPackages = map[string]big{
	"cni":               {1800, "the server, the protocol's versions and the installation share one set of types; the plugin's side is in packages of its own"},
	"internal/agent":    {3200, "every part of a node meets here: the compiler, the loop, the pods' life, status, and how all of it goes to the next process, each in its file"},
	"internal/datapath": {1800, "the walk's steps share one Input, each in its file"},
	"proxy":             {1800, "the rules of endpoints and policies, compiled whole and piece by piece, and the clients' affinities with their file: one table"},
	"dns":               {3000, "cluster names, the wire format of the hot path, the forwarder and the cache; its parts share the message"},
	"internal/cluster": {
		4000, "one converter per kind, both ways, and the two sources that share them and the snapshot, and what a source owes to the next process; how the API server is reached and the State's file are packages of their own",
	},
	"internal/flow":   {1800, "one data structure with its expiry, repair and its encoding for other versions; the file is mapfile's"},
	"internal/kernel": {2300, "the one door to Linux: namespaces, TUNs, links, routes, polling, descriptors"},
	"internal/lab":    {3200, "scheduler, kubelet, endpoint controller, demo and the tools of a pod; no other package depends on its inside"},
	"internal/netstack": {
		3500, "TCP, datagrams and echo end here in three ways, over one table of flows with one set of bounds, and go on past the process' service",
	},
	"internal/nodeport": {1700, "listeners, their TCP sessions and UDP flows, and all of these on their way to a successor"},
	"cmd/netctl":        {1800, "a file for each command: flags, help and construction, which nothing else shares"},
	"test/kube":         {2000, "one step of a cluster's life a file: programs, machines and images have packages of their own"},
	"internal/packet":   {1900, "every header that the walk reads or writes, each in a file"},
	"ipam":              {1900, "carving, the pool with its journal, and the claims: one vocabulary of blocks"},
	"overlay":           {2600, "a peer's life is one state machine, which sending, receiving and timers all share; and the compiler of peers"},
}

// bigFunctions lists functions that may be longer than maxFunction.
var bigFunctions = map[string]string{}

// bigInterfaces lists interfaces that may have more methods than maxMethods.
var bigInterfaces = map[string]string{
	"ipam.disk": "a file system's few calls, so that tests can cut the power between any two of them",
}

func TestSizes(t *testing.T) {
	t.Parallel()
	s := mustSource(t)
	for _, name := range slices.Sorted(maps.Keys(s.packages)) {
		total := 0
		for _, f := range s.packages[name].files {
			if f.test {
				continue
			}
			total += f.lines
			if f.lines > maxFile {
				t.Errorf("%s has %d lines of code, more than %d: split it by noun", f.path, f.lines, maxFile)
			}
		}
		limit, exception := maxPackage, bigPackages[name]
		if exception.lines > 0 {
			limit = exception.lines
			if total <= maxPackage {
				t.Errorf("bigPackages: %s has %d lines of code: the exception is no longer needed", name, total)
			}
		}
		if total > limit {
			t.Errorf("package %s has %d lines of code, more than %d: split it, or argue for an exception in bigPackages", name, total, limit)
		}
	}
	for name, b := range bigPackages {
		if s.packages[name] == nil || b.reason == "" {
			t.Errorf("bigPackages: %s does not exist or has no reason", name)
		}
	}
}

func TestFunctionsAndInterfaces(t *testing.T) {
	t.Parallel()
	s := mustSource(t)
	found := map[string]bool{}
	for name, p := range s.packages {
		for _, f := range p.files {
			if f.test {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					key := name + "." + n.Name.Name
					if n.Body == nil || s.between(f, n.Body.Lbrace, n.Body.Rbrace)-2 <= maxFunction {
						return true
					}
					found[key] = true
					if bigFunctions[key] == "" {
						t.Errorf("%s: %s has %d lines of code, more than %d", f.path, n.Name.Name, s.between(f, n.Body.Lbrace, n.Body.Rbrace)-2, maxFunction)
					}
				case *ast.TypeSpec:
					i, ok := n.Type.(*ast.InterfaceType)
					if !ok || methods(i) <= maxMethods {
						return true
					}
					key := name + "." + n.Name.Name
					found[key] = true
					if bigInterfaces[key] == "" {
						t.Errorf("%s: interface %s has %d methods, more than %d", f.path, n.Name.Name, methods(i), maxMethods)
					}
				}
				return true
			})
		}
	}
	for _, key := range slices.Concat(slices.Collect(maps.Keys(bigFunctions)), slices.Collect(maps.Keys(bigInterfaces))) {
		if !found[key] {
			t.Errorf("%s needs no exception any more", key)
		}
	}
}

func methods(i *ast.InterfaceType) int {
	n := 0
	for _, m := range i.Methods.List {
		n += len(m.Names)
	}
	return n
}

func TestGoMod(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	direct, block := 0, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		switch {
		case line == ")":
			block = ""
		case strings.HasSuffix(line, "("):
			block = verb
		case verb == "replace" || block == "replace":
			t.Errorf("go.mod: %s: go install ignores replace, so what we test would not be what people get", line)
		case (verb == "require" && rest != "" || block == "require") && line != "" && !strings.Contains(line, "// indirect"):
			direct++
		}
	}
	if direct == 0 || direct > maxDependencies {
		t.Errorf("go.mod requires %d modules directly; at most %d are allowed, each with a door and a reason", direct, maxDependencies)
	}
}
