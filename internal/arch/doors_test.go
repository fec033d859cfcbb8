package arch_test

import (
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// door says which packages may import a library. The longest prefix that
// matches an import path counts; a library without a door is denied.
type door struct {
	packages []string
	tests    []string // packages whose tests may import it besides, or everywhere
	reason   string
}

// everywhere stands for every package in door.tests.
const everywhere = "*"

// doors names every library outside the standard library, and unsafe.
var doors = map[string]door{
	"k8s.io": {
		packages: []string{"internal/cluster", "internal/cluster/objects"},
		reason:   "Kubernetes types change and are large; everyone else reads internal/model, or plain maps from objects",
	},
	"sigs.k8s.io/yaml": {
		packages: []string{"deploy", "internal/agent/settings", "internal/cluster"},
		tests:    []string{"cmd/netctl"},
		reason:   "manifests are read and written in one place, the agent's configuration file in another; the chart's values are read as Helm reads them, with its library",
	},
	"github.com/fsnotify/fsnotify": {
		packages: []string{"internal/cluster"},
		reason:   "the watch of the manifest directory",
	},
	"gvisor.dev/gvisor": {
		packages: []string{"internal/netstack", "internal/packet"},
		reason:   "a TCP/IP stack for what must end in a socket, and its checksum routine; the API has no promises",
	},
	"golang.zx2c4.com/wireguard": {
		packages: []string{"overlay", "overlay/handshake", "overlay/overlaytest"},
		reason:   "its replay window and timestamps; its device is what tests hold the engine against",
	},
	"github.com/flynn/noise": {
		packages: []string{"overlay/handshake"},
		reason:   "the Noise handshake: no cryptography of our own",
	},
	"golang.org/x/crypto": {
		packages: []string{"overlay", "overlay/handshake"},
		reason:   "sealing of packets, MACs and cookies",
	},
	"github.com/containernetworking/cni": {
		packages: []string{"cni", "internal/lab"},
		reason:   "the plugin protocol at both ends: the server, and the lab that plays the container runtime",
	},
	"github.com/vishvananda/netlink": {
		packages: []string{"internal/kernel"},
		reason:   "the door to Linux",
	},
	"golang.org/x/sys/unix": {
		packages: []string{"cni", "internal/announce", "internal/drain", "internal/kernel", "internal/netstack", "internal/nodeport", "internal/rawport", "overlay/sessions", "overlay/udp"},
		tests:    []string{"overlay"},
		reason:   "the door to Linux; cni, announce, drain, netstack, nodeport, rawport and the tunnels set options of their own sockets with it, and session files are asked where they lie",
	},
	"golang.org/x/net/bpf": {
		packages: []string{"internal/announce", "internal/netstack", "internal/rawport"},
		reason:   "the filters of raw sockets, and of those that only keep a port",
	},
	"golang.org/x/net/icmp": {
		packages: []string{"internal/lab"},
		reason:   "the lab's ping",
	},
	"golang.org/x/net/ipv4": {
		packages: []string{"internal/lab"},
		reason:   "the lab's ping",
	},
	"golang.org/x/net/ipv6": {
		packages: []string{"internal/lab"},
		reason:   "the lab's ping",
	},
	"github.com/miekg/dns": {
		packages: []string{"cmd/netctl", "dns", "internal/lab", "test/kube", "test/restart/load"},
		tests:    []string{"internal/vnet"},
		reason:   "messages outside the hot path: the cluster's server, the resolver that labs and test clusters give their nodes, questions of a test",
	},
	"github.com/gaissmai/bart": {
		packages: []string{"internal/agent", "internal/datapath", "overlay"},
		tests:    []string{"internal/rawport"},
		reason:   "longest-prefix tables: the routes, built by the agent and read by the walk, and the peers'",
	},
	"github.com/google/renameio/v2": {
		packages: []string{"cmd/netctl", "internal/agent/record", "internal/lab"},
		reason:   "files that are written whole or not at all",
	},
	"golang.org/x/sync/errgroup": {
		packages: []string{"cmd/netctl", "internal/agent", "internal/dnsnode", "internal/lab", "internal/proxynode", "test/bench", "test/kube", "test/kube/speed"},
		reason:   "only what composes runs several things at once",
	},
	"github.com/spf13/cobra": {
		packages: []string{"cmd/netctl", "test/kube"},
		reason:   "commands and flags are main's",
	},
	"github.com/google/go-cmp": {
		tests:  []string{everywhere},
		reason: "for tests",
	},
	"unsafe": {
		packages: []string{"internal/kernel", "internal/mapfile", "overlay/sessions", "overlay/udp"},
		reason:   "system calls, words in mapped files, and the mapped table of sessions",
	},
}

// apiExceptions lists the exported names that may show a library's type.
var apiExceptions = map[string]string{
	"internal/datapath.Tables":               "the agent builds the trie of routes that the walk reads; a type of our own would only wrap it",
	"overlay/overlaytest.Bind.Open":          "carries the library's device in tests: it implements the library's interface",
	"overlay/overlaytest.Bind.Send":          "likewise",
	"overlay/overlaytest.Bind.ParseEndpoint": "likewise",
}

// doorOf returns the prefix of the door that an import path belongs to.
func doorOf(imported string) (string, bool) {
	best := ""
	for prefix := range doors {
		if (imported == prefix || strings.HasPrefix(imported, prefix+"/")) && len(prefix) > len(best) {
			best = prefix
		}
	}
	return best, best != ""
}

func TestLibrariesHaveOneDoor(t *testing.T) {
	t.Parallel()
	s := mustSource(t)
	used := map[[2]string]bool{}
	for name, p := range s.packages {
		for _, f := range p.files {
			for _, imported := range f.imports {
				if _, ours := internalName(imported); ours {
					continue
				}
				prefix, ok := doorOf(imported)
				if !ok {
					if !standard(imported) {
						t.Errorf("%s imports %s, which has no door: add a row to doors with its packages and the reason for the dependency", f.path, imported)
					}
					continue
				}
				d := doors[prefix]
				if !slices.Contains(d.packages, name) && (!f.test || !slices.Contains(d.tests, name) && !slices.Contains(d.tests, everywhere)) {
					t.Errorf("%s imports %s, whose door is %v: %s", f.path, imported, d.packages, d.reason)
				}
				used[[2]string{prefix, name}] = true
			}
		}
	}
	for prefix, d := range doors {
		if d.reason == "" {
			t.Errorf("doors: %s has no reason", prefix)
		}
		for _, name := range slices.Concat(d.packages, d.tests) {
			if name == everywhere {
				continue
			}
			if s.packages[name] == nil {
				t.Errorf("doors: package %s does not exist", name)
			} else if !used[[2]string{prefix, name}] {
				t.Errorf("doors: %s may import %s but does not: remove the permission", name, prefix)
			}
		}
	}
}

// TestDoorsStayShut: a library's types do not appear in the exported API of the
// package that is its door, or its users would need the library too.
func TestDoorsStayShut(t *testing.T) {
	t.Parallel()
	s := mustSource(t)
	found := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(s.packages)) {
		for _, f := range s.packages[name].files {
			if f.test || f.ast.Name.Name == "main" {
				continue
			}
			a := api{libraries: f.libraries()}
			for _, d := range f.ast.Decls {
				a.decl(d)
			}
			for _, shown := range a.shown {
				key := name + "." + shown.name
				found[key] = true
				if apiExceptions[key] == "" {
					t.Errorf("%s: exported %s shows a type of %s: hide the library behind a type of our own", f.path, shown.name, shown.library)
				}
			}
		}
	}
	for key := range apiExceptions {
		if !found[key] {
			t.Errorf("apiExceptions: %s shows no library's type any more", key)
		}
	}
}

// libraries maps the local names of imports that have a door to their paths.
func (f *file) libraries() map[string]string {
	out := map[string]string{}
	for _, spec := range f.ast.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		if _, ok := doorOf(imported); !ok || imported == "unsafe" {
			continue
		}
		if spec.Name != nil {
			out[spec.Name.Name] = imported
			continue
		}
		// Without a name in the import, the package's name is guessed from its
		// path: the last element that is not a major version ("v2", "100").
		elements := strings.Split(imported, "/")
		last := elements[len(elements)-1]
		out[last] = imported
		if len(elements) > 1 && strings.Trim(last, "v0123456789") == "" {
			out[elements[len(elements)-2]] = imported
			out["types"+last] = imported
		}
	}
	return out
}

// api collects the libraries' types that a file's exported declarations show.
type api struct {
	libraries map[string]string
	shown     []shownType
}

type shownType struct{ name, library string }

func (a *api) decl(d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		name := d.Name.Name
		if d.Recv != nil {
			receiver := receiverName(d.Recv.List[0].Type)
			if !ast.IsExported(receiver) {
				return
			}
			name = receiver + "." + name
		}
		if d.Name.IsExported() {
			a.look(name, d.Type)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			a.spec(d.Tok, spec)
		}
	}
}

func (a *api) spec(tok token.Token, spec ast.Spec) {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Name.IsExported() {
			a.look(spec.Name.Name, spec.Type)
		}
	case *ast.ValueSpec:
		for i, id := range spec.Names {
			if !id.IsExported() {
				continue
			}
			a.look(id.Name, spec.Type)
			if tok == token.VAR && spec.Type == nil && i < len(spec.Values) {
				a.look(id.Name, spec.Values[i])
			}
		}
	}
}

// look finds selectors on libraries below n, except in unexported fields.
func (a *api) look(name string, n ast.Node) {
	if n == nil {
		return
	}
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.StructType:
			for _, f := range n.Fields.List {
				exported := len(f.Names) == 0 || slices.ContainsFunc(f.Names, (*ast.Ident).IsExported)
				if exported {
					a.look(name, f.Type)
				}
			}
			return false
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && a.libraries[x.Name] != "" {
				a.shown = append(a.shown, shownType{name: name, library: a.libraries[x.Name]})
			}
		}
		return true
	})
}

func receiverName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiverName(e.X)
	case *ast.IndexExpr:
		return receiverName(e.X)
	case *ast.IndexListExpr:
		return receiverName(e.X)
	case *ast.Ident:
		return e.Name
	default:
		return ""
	}
}
