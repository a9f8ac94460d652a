//! HostConfig + observed kernel state -> ordered plan of actions. Pure.
