package wire

import "strings"

// MaxContainerID bounds CNI_CONTAINERID. Runtimes use 64 characters; 200 with
// an interface name still fits into a file name.
const MaxContainerID = 200

// maxIfName is IFNAMSIZ without its NUL.
const maxIfName = 15

// maxText bounds the other variables: a path, or CNI_ARGS.
const maxText = 1 << 16

// The operations of the specification.
const (
	Add           = "ADD"
	Del           = "DEL"
	Check         = "CHECK"
	GC            = "GC"
	Status        = "STATUS"
	VersionOfSpec = "VERSION"
)

// Validate checks what came from the environment: which variables the command
// needs, and that each is one that cannot hurt in a path, a log or a netlink
// message.
func (r *Request) Validate() *Error {
	var missing []string
	need := func(name, value string) {
		if value == "" {
			missing = append(missing, name)
		}
	}
	switch r.Command {
	case Add, Check:
		need("CNI_CONTAINERID", r.ContainerID)
		need("CNI_NETNS", r.Netns)
		need("CNI_IFNAME", r.IfName)
	case Del:
		need("CNI_CONTAINERID", r.ContainerID)
		need("CNI_IFNAME", r.IfName)
	case GC, Status, VersionOfSpec:
	case "":
		return Errorf(CodeEnvironment, "CNI_COMMAND is not set: this program is called by a container runtime")
	default:
		return Errorf(CodeEnvironment, "CNI_COMMAND is %.20q: want ADD, DEL, CHECK, GC, STATUS or VERSION", r.Command)
	}
	if len(missing) > 0 {
		return Errorf(CodeEnvironment, "%s needs the environment variables %s", r.Command, strings.Join(missing, ", "))
	}
	if len(r.Netns) > maxText || len(r.Args) > maxText {
		return Errorf(CodeEnvironment, "CNI_NETNS or CNI_ARGS is longer than %d bytes", maxText)
	}
	if r.ContainerID != "" && !ValidContainerID(r.ContainerID) {
		return Errorf(CodeEnvironment, "CNI_CONTAINERID %.80q: want a letter or digit, then letters, digits, '_', '.' or '-', at most %d in all",
			r.ContainerID, MaxContainerID)
	}
	if r.IfName != "" && !ValidIfName(r.IfName) {
		return Errorf(CodeEnvironment, "CNI_IFNAME %.80q: want 1 to %d printable ASCII characters without '/', ':' and '%%'", r.IfName, maxIfName)
	}
	return nil
}

// ValidContainerID reports whether id is one that the specification allows
// and that fits into a file name.
func ValidContainerID(id string) bool {
	if id == "" || len(id) > MaxContainerID {
		return false
	}
	for i := range len(id) {
		c := id[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// ValidIfName reports whether name can name an interface. The kernel allows a
// little more; '%' is refused because the kernel takes "eth%d" as a template.
func ValidIfName(name string) bool {
	if name == "" || len(name) > maxIfName || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == '/' || c == ':' || c == '%' {
			return false
		}
	}
	return true
}
