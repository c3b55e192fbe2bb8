// Relative, so that the page also works under a route prefix; no other document can be named in the address.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, queryConfigEnabled: false, validatorUrl: null });
