package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/netctl/netctl/cni/shim"
	"github.com/netctl/netctl/cni/wire"
)

// Conflist is the network configuration that tells a container runtime to use
// netctl.
type Conflist struct {
	// Name of the network; empty means "netctl".
	Name string
	// Socket of the agent as the plugin sees it, on the host; empty means
	// wire.DefaultSocket.
	Socket string
	// Capabilities that the agent serves; nil means Capabilities().
	Capabilities []string
}

// Capabilities are the runtime's arguments that the agent acts on. The Server
// understands more (ips); a runtime that is not told so sends none, and nobody
// believes them done.
func Capabilities() []string {
	return []string{"bandwidth", "io.kubernetes.cri.pod-annotations", "portMappings"}
}

// networkList is a conflist file. cniVersion is what old runtimes read;
// runtimes that know cniVersions take the newest one that they speak, and only
// from 1.1.0 do they call STATUS and GC. loadOnlyInlinedPlugins keeps others
// from adding plugins by dropping files into a sub-folder.
type networkList struct {
	CNIVersion             string            `json:"cniVersion"`
	CNIVersions            []string          `json:"cniVersions"`
	Name                   string            `json:"name"`
	LoadOnlyInlinedPlugins bool              `json:"loadOnlyInlinedPlugins"`
	Plugins                []json.RawMessage `json:"plugins"`
}

type pluginEntry struct {
	Type         string          `json:"type"`
	Socket       string          `json:"socket"`
	Capabilities map[string]bool `json:"capabilities"`
}

// Render returns the file's content: pure, equal for equal input. Plugins that
// somebody else chained behind ours in previous, the present content (nil for
// none), stay.
func (c Conflist) Render(previous []byte) ([]byte, error) {
	name, socket, capabilities := c.Name, c.Socket, c.Capabilities
	if name == "" {
		name = "netctl"
	}
	if socket == "" {
		socket = wire.DefaultSocket
	}
	if capabilities == nil {
		capabilities = Capabilities()
	}
	if !wire.ValidContainerID(name) { // the rule for network names is the same
		return nil, fmt.Errorf("network name %q is invalid", name)
	}
	entry := pluginEntry{Type: shim.PluginName, Socket: socket, Capabilities: map[string]bool{}}
	for _, capability := range capabilities {
		entry.Capabilities[capability] = true
	}
	own, err := json.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("render conflist: %w", err)
	}
	out, err := json.MarshalIndent(networkList{
		CNIVersion:             "1.0.0",
		CNIVersions:            wire.SpecVersions(),
		Name:                   name,
		LoadOnlyInlinedPlugins: true,
		Plugins:                append([]json.RawMessage{own}, foreignTail(previous)...),
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render conflist: %w", err)
	}
	return append(out, '\n'), nil
}

// foreignTail returns the plugins that follow ours in a conflist of ours, as
// service meshes add themselves.
func foreignTail(previous []byte) []json.RawMessage {
	var list networkList
	if json.Unmarshal(previous, &list) != nil || len(list.Plugins) == 0 {
		return nil
	}
	if kind, err := pluginType(list.Plugins[0]); err != nil || kind != shim.PluginName {
		return nil
	}
	return slices.DeleteFunc(list.Plugins[1:], func(raw json.RawMessage) bool {
		kind, err := pluginType(raw)
		return err != nil || kind == shim.PluginName
	})
}

func pluginType(raw json.RawMessage) (string, error) {
	var p struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return "", err
	}
	if p.Type == "" {
		return "", errors.New("plugin without a type")
	}
	return p.Type, nil
}
