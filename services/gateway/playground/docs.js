// Swagger's page of the API, in the theme that the playground was set to.

document.documentElement.dataset.theme = localStorage.getItem("samclip-theme") ?? "";
const {SwaggerUIBundle} = window;
window.ui = SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true,
  presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout",
});
