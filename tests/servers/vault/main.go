// The real Vault core with the transit engine and the logins that the tests need, in memory, unsealed.
// Takes the flags of "vault server -dev" that the tests use, so that a vault or bao binary does as well.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	jwt "github.com/hashicorp/vault-plugin-auth-jwt"
	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/credential/userpass"
	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

func main() {
	if len(os.Args) < 2 || os.Args[1] != "server" {
		log.Fatal("usage: vault-server server -dev [flags of vault server -dev]")
	}
	flags := flag.NewFlagSet("server", flag.ExitOnError)
	flags.Bool("dev", false, "as vault's; this server knows no other way")
	flags.Bool("dev-no-store-token", false, "as vault's; the token is never stored")
	token := flags.String("dev-root-token-id", "root", "the root token")
	listen := flags.String("dev-listen-address", "127.0.0.1:8200", "address to listen on")
	withTLS := flags.Bool("dev-tls", false, "serve TLS, asking for client certificates")
	folder := flags.String("dev-tls-cert-dir", "", "where vault-ca.pem is written")
	_ = flags.Parse(os.Args[2:])

	core, unsealKey, err := start(*token)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	if *withTLS {
		config, err := serverTLS(*folder)
		if err != nil {
			log.Fatal(err)
		}
		listener = tls.NewListener(listener, config)
	}
	fmt.Printf("Unseal Key: %s\nRoot Token: %s\n", base64.StdEncoding.EncodeToString(unsealKey), *token)
	handler := vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core})
	log.Fatal((&http.Server{Handler: handler}).Serve(listener))
}

// start makes a core in memory, initialises and unseals it, and makes its root token.
func start(token string) (*vault.Core, []byte, error) {
	logger := hclog.New(&hclog.LoggerOptions{Name: "vault", Level: hclog.Error})
	physical, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, nil, err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical: physical,
		Logger:   logger,
		LogicalBackends: map[string]logical.Factory{
			"transit": transit.Factory,
		},
		CredentialBackends: map[string]logical.Factory{
			"approle":    approle.Factory,
			"cert":       cert.Factory,
			"jwt":        jwt.Factory,
			"kubernetes": kubernetes.Factory,
			"userpass":   userpass.Factory,
		},
		BuiltinRegistry: registry{},
		DisableMlock:    true,
		DefaultLeaseTTL: time.Hour,
		MaxLeaseTTL:     24 * time.Hour,
	})
	if err != nil {
		return nil, nil, err
	}
	mendFactories(core)
	ctx := namespace.ContextWithNamespace(context.Background(), namespace.RootNamespace)
	shares := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}
	made, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: shares})
	if err != nil {
		return nil, nil, err
	}
	unsealKey := made.SecretShares[0]
	// Unseal clears what it is given.
	if _, err := core.Unseal(append([]byte(nil), unsealKey...)); err != nil {
		return nil, nil, err
	}
	answer, err := core.HandleRequest(ctx, &logical.Request{
		Operation:   logical.UpdateOperation,
		ClientToken: made.RootToken,
		Path:        "auth/token/create",
		Data:        map[string]interface{}{"id": token, "policies": []string{"root"}, "no_parent": true},
	})
	if err == nil && answer.IsError() {
		err = answer.Error()
	}
	return core, unsealKey, err
}

// mendFactories cures sdk 0.9.2, which refuses paths of core 1.14.0 that declare a create operation and no
// existence check: exactly those get one that answers "does not exist".
func mendFactories(core *vault.Core) {
	for _, name := range []string{"logicalBackends", "credentialBackends"} {
		field := reflect.ValueOf(core).Elem().FieldByName(name)
		factories := *(*map[string]logical.Factory)(unsafe.Pointer(field.UnsafeAddr()))
		for kind, factory := range factories {
			factory := factory
			factories[kind] = func(ctx context.Context, config *logical.BackendConfig) (logical.Backend, error) {
				backend, err := factory(ctx, config)
				if err == nil {
					mendPaths(backend)
				}
				return backend, err
			}
		}
	}
}

func mendPaths(backend logical.Backend) {
	value := reflect.Indirect(reflect.ValueOf(backend))
	if value.Kind() != reflect.Struct {
		return
	}
	field := value.FieldByName("Backend")
	if !field.IsValid() {
		return
	}
	inner, ok := field.Interface().(*framework.Backend)
	if !ok || inner == nil {
		return
	}
	for _, path := range inner.Paths {
		_, operation := path.Operations[logical.CreateOperation]
		_, callback := path.Callbacks[logical.CreateOperation]
		if path.ExistenceCheck == nil && (operation || callback) {
			path.ExistenceCheck = func(context.Context, *logical.Request, *framework.FieldData) (bool, error) {
				return false, nil
			}
		}
	}
}

// registry says that no plugin is deprecated; mounting asks.
type registry struct{}

func (registry) Contains(string, consts.PluginType) bool { return false }
func (registry) Get(string, consts.PluginType) (func() (interface{}, error), bool) {
	return nil, false
}
func (registry) Keys(consts.PluginType) []string { return nil }
func (registry) DeprecationStatus(string, consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, true
}

// serverTLS makes an issuer and a certificate for localhost, and writes the issuer as vault-ca.pem.
func serverTLS(folder string) (*tls.Config, error) {
	if folder == "" {
		return nil, errors.New("-dev-tls needs -dev-tls-cert-dir")
	}
	issuer := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "issuer of a test"},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	issuerDER, issuerKey, err := certify(issuer, issuer, nil)
	if err != nil {
		return nil, err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "vault of a test"},
		NotBefore:    issuer.NotBefore,
		NotAfter:     issuer.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, key, err := certify(server, issuer, issuerKey)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuerDER})
	if err := os.WriteFile(filepath.Join(folder, "vault-ca.pem"), text, 0o600); err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth:   tls.RequestClientCert,
		NextProtos:   []string{"h2", "http/1.1"},
		MinVersion:   tls.VersionTLS12,
	}, nil
}

// certify signs template with a key of its own, or with the issuer's.
func certify(template, issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if issuerKey == nil {
		issuerKey = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey)
	return der, key, err
}
